-- Forget that somebody watches these jobs. In the form for several tables, as delete_dead_letters.sql is; and as there,
-- the last condition says nothing, but keeps MySQL from reading them all.
DELETE w
  FROM creche_watches AS w FORCE INDEX (PRIMARY)
 WHERE w.job_id IN (%(ids)s)
   AND w.watcher = %(watcher)s
   AND w.since > TIMESTAMP'1000-01-01 00:00:00'
