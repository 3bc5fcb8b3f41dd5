-- Give a queue a retention of its own.
INSERT INTO creche_queues (queue_name, keep_completed, keep_failed, keep_cancelled)
VALUES (%(queue)s, %(completed)s, %(failed)s, %(cancelled)s)
    ON DUPLICATE KEY UPDATE keep_completed = %(completed)s, keep_failed = %(failed)s, keep_cancelled = %(cancelled)s
