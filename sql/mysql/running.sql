-- Who holds what, and for how many microseconds yet: the jobs that run, of all that there are.
SELECT locked_by, id, queue_name, type, attempts, TIMESTAMPDIFF(MICROSECOND, %(now)s, locked_until), progress,
       progress_message
  FROM creche_jobs FORCE INDEX (creche_jobs_held)
 WHERE locked_until > TIMESTAMP'1000-01-01 00:00:00'
   AND status = 'processing'
