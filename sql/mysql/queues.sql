-- What was said of which queue.
SELECT queue_name, paused_at, keep_completed, keep_failed, keep_cancelled
  FROM creche_queues
