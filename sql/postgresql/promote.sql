-- Make scheduled jobs ready whose time has come: pending ones are due by definition, so that reserve.sql never has to
-- walk over those that are not. The queues are found by hopping through the index from one name to the next, which
-- costs one probe per queue however many jobs wait; then each queue's due jobs are a range of the same index.
WITH RECURSIVE queue (name) AS (
    (SELECT queue_name FROM creche_jobs WHERE status = 'scheduled' ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT j.queue_name
                 FROM creche_jobs AS j
                WHERE j.status = 'scheduled'
                  AND j.queue_name > queue.name
                ORDER BY j.queue_name
                LIMIT 1
           )
      FROM queue
     WHERE queue.name IS NOT NULL
), due AS MATERIALIZED (
    SELECT d.id
      FROM queue
     CROSS JOIN LATERAL (
               SELECT j.id
                 FROM creche_jobs AS j
                WHERE j.queue_name = queue.name
                  AND j.status = 'scheduled'
                  AND j.available_at <= coalesce(%(now)s::timestamptz, now())
                ORDER BY j.available_at
                LIMIT %(limit)s
                  FOR NO KEY UPDATE SKIP LOCKED
           ) AS d
     LIMIT %(limit)s
), promoted AS (
    UPDATE creche_jobs
       SET status = 'pending',
           updated_at = coalesce(%(now)s::timestamptz, now())
     WHERE id = ANY (ARRAY (SELECT due.id FROM due))
    RETURNING queue_name
)
SELECT count(*)::integer, array_agg(DISTINCT queue_name)
  FROM promoted
