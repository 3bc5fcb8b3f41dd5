-- Let go of the fingerprints that only a stale result still holds, for the retry that comes next in the same transaction.
-- Lazily, here, because no index can ask a clock.
UPDATE creche_jobs FORCE INDEX (creche_jobs_flight)
   SET single_flight = FALSE
 WHERE flight IN (%(fingerprints)s)
   AND result_expires_at <= %(now)s
