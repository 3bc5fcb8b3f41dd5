-- End attempts. Fenced by the whole lease: no row, no effect. What follows an event is creche._lifecycle's to say and comes
-- in as status, goes_on, gives_back; what only the row knows is decided here: whether its cancellation was asked for
-- meanwhile (a job that would go on ends), and whether it is due already (then nothing would promote it in time).
-- typeof, here and elsewhere in RETURNING: SQLite 3.40 takes IS NOT NULL there for true because another column is NOT NULL.
-- MATERIALIZED: or each mention of a value would take it out of the JSON again.
WITH settlement AS MATERIALIZED (
    SELECT
        json_extract(value, '$.id') AS id,
        json_extract(value, '$.token') AS token,
        json_extract(value, '$.nonce') AS nonce,
        json_extract(value, '$.status') AS status,
        json_extract(value, '$.due_at') AS due_at,  -- of what goes on later; null stays where it stood in its queue
        json_extract(value, '$.gives_back') AS gives_back,
        json_extract(value, '$.goes_on') AS goes_on,
        json_extract(value, '$.result') AS result,
        json_extract(value, '$.error') AS error,
        json_extract(value, '$.last_error') AS last_error
    FROM json_each(:settlements)
)
UPDATE creche_jobs AS job
SET status = CASE
        WHEN settlement.goes_on AND job.cancel_requested THEN 'cancelled'
        WHEN settlement.due_at <= :now THEN 'pending'
        ELSE settlement.status
    END,
    attempts = job.attempts - settlement.gives_back,
    available_at = iif(settlement.due_at IS NULL OR job.cancel_requested, job.available_at, settlement.due_at),
    locked_until = NULL,
    locked_by = NULL,
    single_flight = job.single_flight AND CASE
        WHEN settlement.goes_on THEN NOT job.cancel_requested
        ELSE settlement.status = 'completed' AND job.result_ttl IS NOT NULL
    END,
    result = settlement.result,
    result_expires_at = iif(settlement.status = 'completed', :now + job.result_ttl, NULL),
    errors = iif(settlement.error IS NULL, job.errors, json_insert(
        iif(json_array_length(job.errors) < :errors_kept, job.errors, json_remove(job.errors, '$[0]')),
        '$[#]', json_patch(json_object('attempt', job.attempts, 'failed_at', :failed_at), settlement.error)
    )),
    last_error = coalesce(settlement.last_error, job.last_error),
    updated_at = :now,
    completed_at = iif(settlement.goes_on AND NOT job.cancel_requested, NULL, :now)
FROM settlement
WHERE job.id = settlement.id
    AND job.token = settlement.token
    AND job.nonce = settlement.nonce
    AND +job.status = 'processing'  -- + keeps ANALYZE from beginning with all that are processing
RETURNING id, token, nonce, queue_name, status, available_at, typeof(callbacks) = 'text' AS is_followed
