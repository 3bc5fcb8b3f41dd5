-- Rows by id, for receipts that are waited for and for people.
SELECT id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at, locked_until, locked_by,
       errors, idempotency_key, fingerprint, cancel_requested, created_at, updated_at, completed_at, result,
       result_expires_at, progress, progress_message, origin
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
