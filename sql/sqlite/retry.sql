-- Make one failed, cancelled or scheduled job ready now. If it had ended it gets all its attempts again, and its
-- fingerprint back unless another job holds that: then nothing happens. One at a time, so that of two jobs with the same
-- fingerprint the first gets it and the second sees that.
UPDATE creche_jobs
SET status = 'pending',
    attempts = iif(status = 'scheduled', attempts, 0),
    available_at = :now,
    token = token + 1,
    nonce = 0,
    cancel_requested = 0,
    single_flight = fingerprint IS NOT NULL,
    updated_at = :now,
    completed_at = NULL
WHERE id = :id
    AND status IN ('failed', 'cancelled', 'scheduled')
    AND NOT EXISTS (
        SELECT 1
        FROM creche_jobs AS rival
        WHERE rival.fingerprint = creche_jobs.fingerprint
            AND rival.single_flight = 1
            AND rival.id <> creche_jobs.id
    )
RETURNING queue_name
