-- Hand out jobs of some queues again. forget_queues comes next.
UPDATE creche_queues
SET paused_at = NULL
WHERE queue_name IN (SELECT value FROM json_each(:queues))
    AND paused_at IS NOT NULL
