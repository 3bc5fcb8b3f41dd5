-- Take back jobs that no lease holds any more and that have attempts left: ready again, where they stood in their queue.
-- If their cancellation was asked for, that is their end, on the last attempt too. A new token, so that whoever held one
-- finds out. The index gives all that are processing, which are few; their deadlines stand in the rows.
UPDATE creche_jobs
SET status = iif(cancel_requested, 'cancelled', 'pending'),
    token = token + 1,
    nonce = 0,
    locked_until = NULL,
    locked_by = NULL,
    single_flight = single_flight AND NOT cancel_requested,
    errors = json_insert(
        iif(json_array_length(errors) < :errors_kept, errors, json_remove(errors, '$[0]')),
        '$[#]', json_object(
            'attempt', attempts, 'failed_at', :failed_at,
            'type', 'LeaseExpired', 'message', 'the lease of attempt ' || attempts || ' ran out', 'traceback', ''
        )
    ),
    last_error = 'LeaseExpired: the lease of attempt ' || attempts || ' ran out',
    updated_at = :now,
    completed_at = iif(cancel_requested, :now, NULL)
WHERE rowid IN (
    SELECT rowid
    FROM creche_jobs
    WHERE status = 'processing'
        AND locked_until <= :now
        AND (cancel_requested OR attempts < max_attempts)
    LIMIT :limit
)
RETURNING queue_name, status
