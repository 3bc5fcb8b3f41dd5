-- Note that these queues are paused; one that is already stays so since then. Locked in one order.
INSERT INTO creche_queues (queue_name, paused_at)
SELECT q.name, coalesce(%(now)s::timestamptz, now())
  FROM unnest(%(queues)s::text[]) AS q (name)
 ORDER BY q.name COLLATE "C"
    ON CONFLICT (queue_name) DO UPDATE
   SET paused_at = excluded.paused_at
 WHERE creche_queues.paused_at IS NULL
