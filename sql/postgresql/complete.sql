-- End attempts that succeeded with the same result: what settle.sql comes to where nothing but the lease is of each job's
-- own. Leases as arrays, and no documents: a fifth of the server's time for a job, reserve and settle together (measured:
-- see docs/performance.md). Jobs with callbacks are left out: see settle.sql, and there of statement_timestamp() and ANY (ARRAY ...), too.
WITH ended AS MATERIALIZED (
    SELECT *
      FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(nonces)s::bigint[]) AS e (id, token, nonce)
), completed AS (
    UPDATE creche_jobs AS j
       SET status = 'completed',
           locked_until = NULL,
           locked_by = NULL,
           single_flight = j.single_flight AND j.result_ttl IS NOT NULL,
           result = %(result)s::json,
           result_expires_at = clock.now + make_interval(secs => j.result_ttl),
           updated_at = clock.now,
           completed_at = clock.now
      FROM ended AS e
     CROSS JOIN (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now) AS clock
     WHERE j.id = ANY (ARRAY (SELECT ended.id FROM ended))
       AND j.id = e.id
       AND j.token = e.token
       AND j.nonce = e.nonce
       AND j.status = 'processing'
       AND j.callbacks IS NULL
    RETURNING j.id, j.token, j.nonce
)
SELECT e.id, e.token, e.nonce, NULL AS woken
  FROM ended AS e
 WHERE (e.id, e.token, e.nonce) NOT IN (SELECT c.id, c.token, c.nonce FROM completed AS c)
 UNION ALL
SELECT NULL, NULL, NULL, w.watcher
  FROM creche_watches AS w
 WHERE w.job_id = ANY (ARRAY (SELECT completed.id FROM completed))
