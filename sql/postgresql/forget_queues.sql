-- Forget those of these queues of which nothing is set any more: for resume.sql and set_retention.sql, after which it
-- comes in the same transaction.
DELETE FROM creche_queues
 WHERE queue_name = ANY (%(queues)s::text[])
   AND paused_at IS NULL
   AND keep_completed IS NULL
