-- End jobs whose last attempt's lease has run out: an attempt counts when it is reserved, so a job that kills its process
-- ends here. write_dead_letters copies them in the same transaction.
UPDATE creche_jobs
SET status = 'failed',
    token = token + 1,
    nonce = 0,
    locked_until = NULL,
    locked_by = NULL,
    single_flight = 0,
    errors = json_insert(
        iif(json_array_length(errors) < :errors_kept, errors, json_remove(errors, '$[0]')),
        '$[#]', json_object(
            'attempt', attempts, 'failed_at', :failed_at,
            'type', 'LeaseExpired', 'message', 'the lease of attempt ' || attempts || ' ran out', 'traceback', ''
        )
    ),
    last_error = 'LeaseExpired: the lease of attempt ' || attempts || ' ran out',
    updated_at = :now,
    completed_at = :now
WHERE rowid IN (
    SELECT rowid
    FROM creche_jobs
    WHERE status = 'processing'
        AND locked_until <= :now
        AND NOT cancel_requested
        AND attempts >= max_attempts
    LIMIT :limit
)
RETURNING id, status, typeof(callbacks) = 'text' AS is_followed
