-- Forget whoever watches these jobs. The last condition says nothing: see forget_watches.sql.
DELETE w
  FROM creche_watches AS w FORCE INDEX (PRIMARY)
 WHERE w.job_id IN (%(ids)s)
   AND w.since > TIMESTAMP'1000-01-01 00:00:00'
