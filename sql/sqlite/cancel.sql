-- End jobs that wait; ask the holders of those that run. A holder's lease stays good until it has answered, so only what
-- waited gets a new token.
UPDATE creche_jobs
SET status = iif(status = 'processing', status, 'cancelled'),
    cancel_requested = cancel_requested OR status = 'processing',
    token = token + (status <> 'processing'),
    nonce = iif(status = 'processing', nonce, 0),
    single_flight = single_flight AND status = 'processing',
    updated_at = :now,
    completed_at = iif(status = 'processing', NULL, :now)
WHERE id IN (SELECT value FROM json_each(:ids))
    AND status IN ('pending', 'scheduled', 'processing')
RETURNING id, status, typeof(callbacks) = 'text' AS is_followed
