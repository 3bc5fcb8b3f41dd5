-- Let go of the fingerprints that only a stale result still holds, for the dispatch that comes next in the same
-- transaction. Lazily, here, because no index can ask a clock. Locked in one order, so that two batches can't deadlock.
UPDATE creche_jobs
   SET single_flight = false
 WHERE id = ANY (ARRAY (
           SELECT j.id
             FROM creche_jobs AS j
             JOIN json_to_recordset(%(jobs)s::json) AS n (fingerprint bytea) ON j.fingerprint = n.fingerprint
            WHERE j.single_flight
              AND j.result_expires_at <= coalesce(%(now)s::timestamptz, now())
            ORDER BY j.id
              FOR NO KEY UPDATE OF j
       ))
