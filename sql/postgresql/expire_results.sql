-- Let go of the fingerprints that only a stale result still holds, for the dispatch that comes next in the same
-- transaction. Lazily, here, because no index can ask a clock. Locked in one order, so that two batches can't deadlock.
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
              AND j.result_expires_at <= coalesce(%(now)s::timestamptz, now())
            ORDER BY j.id
              FOR NO KEY UPDATE
       ))
