-- Push the deadlines of leases out, never in, and note how far the jobs have come whose handlers said so. Fenced by the
-- whole lease; one that has run out but that nobody took over is still its holder's. No index has a column that this
-- changes.
WITH lease AS (
    SELECT
        json_extract(value, '$.id') AS id,
        json_extract(value, '$.token') AS token,
        json_extract(value, '$.nonce') AS nonce,
        json_extract(value, '$.progress') AS progress,  -- NULL: nothing new
        json_extract(value, '$.progress_message') AS progress_message
    FROM json_each(:leases)
)
UPDATE creche_jobs AS job
SET locked_until = max(job.locked_until, :locked_until),
    progress = coalesce(lease.progress, job.progress),
    progress_message = iif(lease.progress IS NULL, job.progress_message, lease.progress_message)
FROM lease
WHERE job.id = lease.id
    AND job.token = lease.token
    AND job.nonce = lease.nonce
    AND +job.status = 'processing'  -- + keeps ANALYZE from beginning with all that are processing
RETURNING id, token, nonce, cancel_requested
