-- Let go of the fingerprints of jobs that are to be retried, where only a stale result still holds them: for retry.sql,
-- which comes next in the same transaction, as expire_results.sql does it for an insert.
UPDATE creche_jobs
   SET single_flight = false
 WHERE id = ANY (ARRAY (
           SELECT rival.id
             FROM creche_jobs AS rival
            WHERE rival.fingerprint = ANY (ARRAY (
                      SELECT j.fingerprint
                        FROM creche_jobs AS j
                       WHERE j.id = ANY (%(ids)s::uuid[])
                  ))
              AND rival.single_flight
              AND rival.result_expires_at <= coalesce(%(now)s::timestamptz, now())
            ORDER BY rival.id
              FOR NO KEY UPDATE
       ))
