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
), overdue AS MATERIALIZED (
    SELECT queue.name, kept.seconds
      FROM queue
      LEFT JOIN LATERAL (
               SELECT q.keep_failed
                 FROM creche_queues AS q
                WHERE q.queue_name = queue.name
                LIMIT 1
           ) AS own ON true
     CROSS JOIN LATERAL (VALUES (coalesce(own.keep_failed, %(failed)s::double precision))) AS kept (seconds)
     CROSS JOIN LATERAL (
               SELECT d.buried_at
                 FROM creche_dead_letters AS d
                WHERE d.queue_name = queue.name
                  AND d.buried_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => kept.seconds)
                ORDER BY d.buried_at
                LIMIT 1
           ) AS oldest
     ORDER BY oldest.buried_at + make_interval(secs => kept.seconds)
), over AS MATERIALIZED (
    SELECT o.job_id
      FROM overdue
     CROSS JOIN LATERAL (
               SELECT d.job_id
                 FROM creche_dead_letters AS d
                WHERE d.queue_name = overdue.name
                  AND d.buried_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => overdue.seconds)
                ORDER BY d.buried_at
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           ) AS o
     LIMIT %(limit)s
)
DELETE FROM creche_dead_letters
 WHERE job_id = ANY (ARRAY (SELECT over.job_id FROM over))
