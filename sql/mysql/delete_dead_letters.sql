-- A job that gets another go is dead no longer.
DELETE FROM creche_dead_letters
 WHERE job_id IN (%(ids)s)
