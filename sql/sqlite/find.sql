-- The rows of some jobs, in no order.
SELECT
    id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at, locked_until, locked_by,
    idempotency_key, fingerprint, cancel_requested, result, result_expires_at, errors, created_at, updated_at,
    completed_at, progress, progress_message, origin
FROM creche_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
