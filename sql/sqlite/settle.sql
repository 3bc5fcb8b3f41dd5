-- End one attempt. Fenced by the whole lease: no row, no effect. What follows an event is creche._lifecycle's to say and
-- comes in as :status, :goes_on, :gives_back; what only the row knows is decided here: whether its cancellation was asked
-- for meanwhile (a job that would go on ends), and whether it is due already (then nothing would promote it in time).
UPDATE creche_jobs
SET status = CASE
        WHEN :goes_on AND cancel_requested THEN 'cancelled'
        WHEN :due_at <= :now THEN 'pending'
        ELSE :status
    END,
    attempts = attempts - :gives_back,
    available_at = iif(:due_at IS NULL OR cancel_requested, available_at, :due_at),
    locked_until = NULL,
    locked_by = NULL,
    single_flight = single_flight AND CASE
        WHEN :goes_on THEN NOT cancel_requested
        ELSE :status = 'completed' AND result_ttl IS NOT NULL
    END,
    result = :result,
    result_expires_at = iif(:status = 'completed', :now + result_ttl, NULL),
    errors = iif(:error IS NULL, errors, json_insert(
        iif(json_array_length(errors) < :errors_kept, errors, json_remove(errors, '$[0]')),
        '$[#]', json_patch(json_object('attempt', attempts, 'failed_at', :failed_at), :error)
    )),
    last_error = coalesce(:last_error, last_error),
    updated_at = :now,
    completed_at = iif(:goes_on AND NOT cancel_requested, NULL, :now)
WHERE id = :id
    AND token = :token
    AND nonce = :nonce
    AND status = 'processing'
RETURNING queue_name, status, available_at
