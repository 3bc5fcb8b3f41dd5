-- Delete jobs that are over; deletable.sql has locked them. In the form for several tables, as delete_dead_letters.sql is.
DELETE j
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NOT NULL
