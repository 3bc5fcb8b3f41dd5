-- Give a queue a retention of its own, or take it away: then all three are NULL.
INSERT INTO creche_queues (queue_name, keep_completed, keep_failed, keep_cancelled)
VALUES (%(queue)s, %(completed)s, %(failed)s, %(cancelled)s)
    ON CONFLICT (queue_name) DO UPDATE
   SET keep_completed = excluded.keep_completed,
       keep_failed = excluded.keep_failed,
       keep_cancelled = excluded.keep_cancelled
