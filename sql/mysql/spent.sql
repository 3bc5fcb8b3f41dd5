-- Lock jobs whose lease has run out with their last attempt, for bury.sql. Apart from recover.sql, so that each has its
-- own limit, and a count that reached it means that there may be more of that kind.
SELECT id
  FROM creche_jobs FORCE INDEX (creche_jobs_held)
 WHERE locked_until <= %(run_out)s
   AND attempts >= max_attempts
   AND NOT cancel_requested
 ORDER BY locked_until
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
