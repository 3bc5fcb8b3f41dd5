-- Forget queues of which there is nothing more to say. In the form for several tables, as delete_dead_letters.sql is.
DELETE q
  FROM creche_queues AS q FORCE INDEX (PRIMARY)
 WHERE q.queue_name IN (%(queues)s)
   AND q.paused_at IS NULL
   AND q.keep_completed IS NULL
