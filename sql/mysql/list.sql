-- One page of jobs, newest first; the last id of a page is where the next one begins. A filter that hardly any job
-- matches reads past those that don't.
SELECT id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at, locked_until, locked_by,
       errors, idempotency_key, fingerprint, cancel_requested, created_at, updated_at, completed_at, result,
       result_expires_at, progress, progress_message, origin
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id < %(before)s
   AND %(wanted)s
 ORDER BY id DESC
 LIMIT %(limit)s
