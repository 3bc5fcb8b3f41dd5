-- A page of jobs, newest first. By id, not by offset: a page costs the same wherever it begins, and what is inserted
-- meanwhile moves nothing. A filter that hardly any job matches reads past those that don't.
SELECT
    id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at, locked_until, locked_by,
    idempotency_key, fingerprint, cancel_requested, result, result_expires_at, errors, created_at, updated_at,
    completed_at, progress, progress_message, origin
FROM creche_jobs
WHERE id < coalesce(:before, 'g')  -- after every hexadecimal digit
    AND (:queues IS NULL OR queue_name IN (SELECT value FROM json_each(:queues)))
    AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
    AND (:statuses IS NULL OR status IN (SELECT value FROM json_each(:statuses)))
ORDER BY id DESC
LIMIT :limit
