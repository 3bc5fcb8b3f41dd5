-- Hand the first ready jobs of one queue to one worker. The writer's lock is held: no rival reads in between, so what
-- other engines need SKIP LOCKED for needs nothing here. RETURNING has no order; whoever asked sorts the few rows.
-- The name of a queue that is paused becomes NULL before the search begins, not a condition that each row is held against:
-- a backlog that waits behind a pause is not walked over.
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
        AND queue_name = (
            SELECT :queue_name
            WHERE NOT EXISTS (
                SELECT 1
                FROM creche_queues AS queue
                WHERE queue.queue_name = :queue_name AND queue.paused_at IS NOT NULL
            )
        )
        AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
    ORDER BY priority DESC, available_at, id
    LIMIT :limit
)
RETURNING
    id, token, nonce, queue_name, type, payload, priority, attempts, max_attempts, available_at, created_at, origin
