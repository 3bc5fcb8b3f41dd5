-- Let go of the fingerprints that only a stale result still holds, for the dispatch that comes next in the same
-- transaction; for a job that says refresh, a fresh result is stale, unless an id or a key answers for the job anyway.
-- Lazily, here, because no index can ask a clock. Locked in one order, so that two batches can't deadlock.
UPDATE creche_jobs
   SET single_flight = false
 WHERE id = ANY (ARRAY (
           SELECT j.id
             FROM creche_jobs AS j
            WHERE j.fingerprint = ANY (ARRAY (
                      SELECT n.fingerprint
                        FROM json_to_recordset(%(jobs)s::json) AS n (fingerprint bytea)
                  ))
              AND j.single_flight
              AND (
                      j.result_expires_at <= coalesce(%(now)s::timestamptz, statement_timestamp())
                   OR j.status = 'completed' AND j.fingerprint = ANY (ARRAY (
                          SELECT n.fingerprint
                            FROM json_to_recordset(%(jobs)s::json) AS n (
                                     id uuid, queue_name text, idempotency_key text, fingerprint bytea, refresh boolean
                                 )
                           WHERE n.refresh
                             AND NOT EXISTS (SELECT FROM creche_jobs AS same WHERE same.id = n.id)
                             AND NOT EXISTS (
                                     SELECT
                                       FROM creche_jobs AS same
                                      WHERE same.queue_name = n.queue_name
                                        AND same.idempotency_key = n.idempotency_key
                                 )
                      ))
                  )
            ORDER BY j.id
              FOR NO KEY UPDATE
       ))
