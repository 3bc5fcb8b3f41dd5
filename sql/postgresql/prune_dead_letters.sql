-- Delete dead letters that are as old as failed jobs may grow in their queue, the oldest of each queue first, and found
-- as prune.sql finds jobs.
WITH RECURSIVE queue (name) AS (
    (SELECT queue_name FROM creche_dead_letters ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT d.queue_name
                 FROM creche_dead_letters AS d
                WHERE d.queue_name > queue.name
                ORDER BY d.queue_name
                LIMIT 1
           )
      FROM queue
     WHERE queue.name IS NOT NULL
), over AS MATERIALIZED (
    SELECT o.job_id
      FROM queue
      LEFT JOIN LATERAL (
               SELECT q.keep_failed
                 FROM creche_queues AS q
                WHERE q.queue_name = queue.name
                LIMIT 1
           ) AS own ON true
     CROSS JOIN LATERAL (
               SELECT d.job_id
                 FROM creche_dead_letters AS d
                WHERE d.queue_name = queue.name
                  AND d.buried_at <= coalesce(%(now)s::timestamptz, now())
                      - make_interval(secs => coalesce(own.keep_failed, %(failed)s::double precision))
                ORDER BY d.buried_at
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           ) AS o
     LIMIT %(limit)s
)
DELETE FROM creche_dead_letters
 WHERE job_id = ANY (ARRAY (SELECT over.job_id FROM over))
