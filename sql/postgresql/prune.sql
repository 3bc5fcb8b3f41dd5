-- Delete finished jobs whose retention is over, the oldest first; a result that is still fresh keeps its row.
-- One range of one index per state, and the index itself passes over the fresh ones.
WITH over AS MATERIALIZED (
    SELECT o.id
      FROM (
               VALUES ('completed', %(completed)s::double precision),
                      ('failed', %(failed)s::double precision),
                      ('cancelled', %(cancelled)s::double precision)
           ) AS kept (status, seconds)
     CROSS JOIN LATERAL (
               SELECT j.id
                 FROM creche_jobs AS j
                WHERE j.status = kept.status
                  AND j.completed_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => kept.seconds)
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
