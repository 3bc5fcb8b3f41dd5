-- Copy a job that has just been buried, with its errors, in the transaction that buried it.
INSERT OR REPLACE INTO creche_dead_letters (
    job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
)
SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, :now, errors
FROM creche_jobs
WHERE id = :id
