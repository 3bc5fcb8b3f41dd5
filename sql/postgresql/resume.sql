-- Note that these queues are not paused any more. Locked in one order.
UPDATE creche_queues
   SET paused_at = NULL
 WHERE queue_name = ANY (ARRAY (
           SELECT queue_name
             FROM creche_queues
            WHERE queue_name = ANY (%(queues)s::text[])
              AND paused_at IS NOT NULL
            ORDER BY queue_name
              FOR UPDATE
       ))
