-- Hand the first ready jobs of one queue to one worker. The writer's lock is held: no rival reads in between, so what
-- other engines need SKIP LOCKED for needs nothing here. RETURNING has no order; whoever asked sorts the few rows.
UPDATE creche_jobs
SET status = 'processing',
    attempts = attempts + 1,
    token = token + 1,
    nonce = :nonce,
    locked_until = :now + :lease,
    locked_by = :worker,
    progress = NULL,
    progress_message = NULL,
    updated_at = :now
WHERE rowid IN (
    SELECT rowid
    FROM creche_jobs
    WHERE status = 'pending'
        AND queue_name = :queue_name
        AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
    ORDER BY priority DESC, available_at, id
    LIMIT :limit
)
RETURNING
    id, token, nonce, queue_name, type, payload, priority, attempts, max_attempts, available_at, created_at, origin
