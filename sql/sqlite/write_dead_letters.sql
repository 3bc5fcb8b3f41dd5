-- Copy jobs that have just been buried, with their errors, in the transaction that buried them.
INSERT OR REPLACE INTO creche_dead_letters (
    job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
)
SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, :now, errors
FROM creche_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
