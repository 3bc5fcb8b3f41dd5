-- Take a queue's own retention away. forget_queues comes next.
UPDATE creche_queues
SET keep_completed = NULL,
    keep_failed = NULL,
    keep_cancelled = NULL
WHERE queue_name = :queue_name
    AND keep_completed IS NOT NULL
