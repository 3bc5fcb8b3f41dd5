-- Drop the rows of queues of which nothing is said any more.
DELETE FROM creche_queues
WHERE queue_name IN (SELECT value FROM json_each(:queues))
    AND paused_at IS NULL
    AND keep_completed IS NULL
