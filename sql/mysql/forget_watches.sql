-- Forget that somebody watches these jobs. In the form for several tables, as delete_dead_letters.sql is.
DELETE w
  FROM creche_watches AS w FORCE INDEX (PRIMARY)
 WHERE w.job_id IN (%(ids)s)
   AND w.watcher = %(watcher)s
