-- Delete finished jobs whose retention is over, the oldest of each queue first; a result that is still fresh keeps its
-- row. The queues are found by hopping through the index from one name to the next, as in promote.sql; then each state
-- of each queue is one range, which ends where the retention begins, and the index itself passes over the fresh ones.
-- So what a queue keeps for a year costs nothing while it is kept. Those that are most overdue come first, or a queue in
-- which much ends would use up the limit for ever.
WITH RECURSIVE queue (name) AS (
    (SELECT queue_name FROM creche_jobs WHERE completed_at IS NOT NULL ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT j.queue_name
                 FROM creche_jobs AS j
                WHERE j.completed_at IS NOT NULL
                  AND j.queue_name > queue.name
                ORDER BY j.queue_name
                LIMIT 1
           )
      FROM queue
     WHERE queue.name IS NOT NULL
), overdue AS MATERIALIZED (
    SELECT queue.name, kept.status, kept.seconds
      FROM queue
      LEFT JOIN LATERAL (
               SELECT q.keep_completed, q.keep_failed, q.keep_cancelled
                 FROM creche_queues AS q
                WHERE q.queue_name = queue.name
                LIMIT 1
           ) AS own ON true
     CROSS JOIN LATERAL (
               VALUES ('completed', coalesce(own.keep_completed, %(completed)s::double precision)),
                      ('failed', coalesce(own.keep_failed, %(failed)s::double precision)),
                      ('cancelled', coalesce(own.keep_cancelled, %(cancelled)s::double precision))
           ) AS kept (status, seconds)
     CROSS JOIN LATERAL (
               SELECT j.completed_at
                 FROM creche_jobs AS j
                WHERE j.queue_name = queue.name
                  AND j.status = kept.status
                  AND j.completed_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => kept.seconds)
                  AND coalesce(j.result_expires_at, j.completed_at) <= coalesce(%(now)s::timestamptz, now())
                ORDER BY j.completed_at
                LIMIT 1
           ) AS oldest
     ORDER BY oldest.completed_at + make_interval(secs => kept.seconds)
), over AS MATERIALIZED (
    SELECT o.id
      FROM overdue
     CROSS JOIN LATERAL (
               SELECT j.id
                 FROM creche_jobs AS j
                WHERE j.queue_name = overdue.name
                  AND j.status = overdue.status
                  AND j.completed_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => overdue.seconds)
                  AND coalesce(j.result_expires_at, j.completed_at) <= coalesce(%(now)s::timestamptz, now())
                ORDER BY j.completed_at
                LIMIT %(limit)s
                  FOR UPDATE SKIP LOCKED
           ) AS o
     LIMIT %(limit)s
), pruned AS (
    DELETE FROM creche_jobs
     WHERE id = ANY (ARRAY (SELECT over.id FROM over))
    RETURNING id
)
SELECT count(*)::integer
  FROM pruned
