-- End attempts that succeeded, of jobs that are kept for no time: their rows go at once. To delete a row costs the server
-- half of what it costs to write it for the last time, a third of the WAL less, and nothing has to prune it (measured: see
-- docs/performance.md). Those that somebody watches, that others follow, whose result is cached or whose queue keeps them
-- are left to settle.sql. What comes back was left.
-- MATERIALIZED, and arrays of ids: see extend.sql. To look for watches by an array costs one scan, by row one each; the few
-- queues of which something is set are probed by row, for a join would read all of them.
WITH ended AS MATERIALIZED (
    SELECT *
      FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(nonces)s::bigint[]) AS e (id, token, nonce)
), gone AS (
    DELETE FROM creche_jobs AS j
     USING ended AS e
     WHERE j.id = ANY (ARRAY (SELECT ended.id FROM ended))
       AND j.id = e.id
       AND j.token = e.token
       AND j.nonce = e.nonce
       AND j.status = 'processing'
       AND j.callbacks IS NULL
       AND j.result_ttl IS NULL
       AND j.id <> ALL (
               ARRAY (
                   SELECT w.job_id
                     FROM creche_watches AS w
                    WHERE w.job_id = ANY (ARRAY (SELECT ended.id FROM ended))
               )
           )
       AND coalesce((SELECT q.keep_completed FROM creche_queues AS q WHERE q.queue_name = j.queue_name), 0) = 0
    RETURNING j.id, j.token, j.nonce
)
SELECT e.id, e.token, e.nonce
  FROM ended AS e
 WHERE (e.id, e.token, e.nonce) NOT IN (SELECT gone.id, gone.token, gone.nonce FROM gone)
