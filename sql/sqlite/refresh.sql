-- Let go of a cached result, however fresh, for a job that does not want it; never of an active job. Not when that job
-- will find a row by its id or its key: then it does not come to its fingerprint.
UPDATE creche_jobs
SET single_flight = 0
WHERE fingerprint = :fingerprint
    AND single_flight = 1
    AND +status = 'completed'
    AND NOT EXISTS (SELECT 1 FROM creche_jobs AS standing WHERE standing.id = :id)
    AND NOT EXISTS (
        SELECT 1
        FROM creche_jobs AS standing
        WHERE standing.queue_name = :queue_name AND standing.idempotency_key = :idempotency_key
    )
