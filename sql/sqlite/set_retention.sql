-- Give a queue a retention of its own.
INSERT INTO creche_queues (queue_name, keep_completed, keep_failed, keep_cancelled)
VALUES (:queue_name, :completed, :failed, :cancelled)
ON CONFLICT (queue_name) DO UPDATE
SET keep_completed = excluded.keep_completed,
    keep_failed = excluded.keep_failed,
    keep_cancelled = excluded.keep_cancelled
