-- Take back jobs that no lease holds any more and that have attempts left. Each is due a little later, at a moment of its
-- own, or the one that kills its worker would take its neighbours along. The delay is creche._backoff.recovery_delay:
-- four hexadecimal digits of the id, the last three groups of which take turns, say what part of 1, 2, 4 … 64 s. SQLite
-- reads no such digits: a digit's value is its place among those that are not 0.
-- If their cancellation was asked for, that is their end, on the last attempt too. A new token, so that whoever held one
-- finds out. The index gives all that are processing, which are few; their deadlines stand in the rows.
UPDATE creche_jobs
SET status = iif(cancel_requested, 'cancelled', 'scheduled'),
    available_at = iif(cancel_requested, available_at, :now + (
        (instr('123456789abcdef', substr(id, 25 + 4 * ((attempts - 1) % 3), 1)) << 12)
        + (instr('123456789abcdef', substr(id, 26 + 4 * ((attempts - 1) % 3), 1)) << 8)
        + (instr('123456789abcdef', substr(id, 27 + 4 * ((attempts - 1) % 3), 1)) << 4)
        + instr('123456789abcdef', substr(id, 28 + 4 * ((attempts - 1) % 3), 1))
    ) * 1000000 * (1 << min(attempts - 1, 6)) / 65536),
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
RETURNING id, status, typeof(callbacks) = 'text' AS is_followed
