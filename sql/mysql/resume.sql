-- Hand out jobs of these queues again. forget_queues.sql comes next.
UPDATE creche_queues FORCE INDEX (PRIMARY)
   SET paused_at = NULL
 WHERE queue_name IN (%(queues)s)
