-- Take a queue's own retention away. forget_queues.sql comes next.
UPDATE creche_queues FORCE INDEX (PRIMARY)
   SET keep_completed = NULL,
       keep_failed = NULL,
       keep_cancelled = NULL
 WHERE queue_name = %(queue)s
