-- A job that gets another go is dead no longer. In the form for several tables, for the other one takes no FORCE INDEX;
-- `attempts` says nothing, but keeps MySQL from reading them all: see overdue.sql.
DELETE d
  FROM creche_dead_letters AS d FORCE INDEX (PRIMARY)
 WHERE d.job_id IN (%(ids)s)
   AND d.attempts >= 0
