-- Seconds until the next scheduled job of any queue is due, for whoever does the upkeep. It hops from queue to queue
-- through the index as promote.sql does, and looks at the first job of each. (Per worker, reserve.sql says it.)
WITH RECURSIVE queue (name, next) AS (
    (SELECT queue_name, available_at FROM creche_jobs WHERE status = 'scheduled' ORDER BY queue_name, available_at LIMIT 1)
    UNION ALL
    SELECT first.queue_name, first.available_at
      FROM queue
     CROSS JOIN LATERAL (
               SELECT j.queue_name, j.available_at
                 FROM creche_jobs AS j
                WHERE j.status = 'scheduled'
                  AND j.queue_name > queue.name
                ORDER BY j.queue_name, j.available_at
                LIMIT 1
           ) AS first
)
SELECT extract(epoch FROM min(next) - coalesce(%(now)s::timestamptz, now()))::double precision
  FROM queue
