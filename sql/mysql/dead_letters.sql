-- One page of dead letters, newest job first; the last id of a page is where the next one begins.
SELECT job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
  FROM creche_dead_letters FORCE INDEX (PRIMARY)
 WHERE job_id < %(before)s
 ORDER BY job_id DESC
 LIMIT %(limit)s
