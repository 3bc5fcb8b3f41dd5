-- A job that gets another go is dead no longer, and one that was deleted leaves none behind.
DELETE FROM creche_dead_letters WHERE job_id IN (SELECT value FROM json_each(:ids))
