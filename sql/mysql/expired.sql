-- Lock jobs whose lease has run out and that may run again, for recover.sql, and say which of them were asked to stop.
-- SKIP LOCKED: a row that a rival, or its late holder, is writing is not waited for. Where several servers give leases,
-- `run_out` is a little before now: each does so by a clock of its own.
SELECT id, cancel_requested
  FROM creche_jobs FORCE INDEX (creche_jobs_held)
 WHERE locked_until <= %(run_out)s
   AND (attempts < max_attempts OR cancel_requested)
 ORDER BY locked_until
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
