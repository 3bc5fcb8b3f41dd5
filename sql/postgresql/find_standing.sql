-- The rows that stand in the place of each job that insert.sql left out, the strongest claim first: the same id, then
-- the same idempotency key, then the same fingerprint in flight. There may be more than one: the row with the key may
-- be a later job of the same batch. A cached result that is no longer fresh stands in nobody's place, and none does in
-- that of a job that says refresh.
-- A statement of its own, because only a new snapshot sees the row that the insert lost to.
SELECT n.id AS asked, s.id, s.status, s.fingerprint, s.result::text
  FROM json_to_recordset(%(jobs)s::json) AS n (
           id uuid, queue_name text, idempotency_key text, fingerprint bytea, refresh boolean
       )
 CROSS JOIN LATERAL (
           SELECT 1 AS rank, j.id, j.status, j.fingerprint, j.result
             FROM creche_jobs AS j
            WHERE j.id = n.id
            UNION ALL
           SELECT 2, j.id, j.status, j.fingerprint, j.result
             FROM creche_jobs AS j
            WHERE j.queue_name = n.queue_name
              AND j.idempotency_key = n.idempotency_key
            UNION ALL
           SELECT 3, j.id, j.status, j.fingerprint, j.result
             FROM creche_jobs AS j
            WHERE j.fingerprint = n.fingerprint
              AND j.single_flight
              AND (
                      j.result_expires_at IS NULL
                   OR j.result_expires_at > coalesce(%(now)s::timestamptz, statement_timestamp())
                      AND n.refresh IS NOT TRUE
                  )
       ) AS s
 ORDER BY s.rank
