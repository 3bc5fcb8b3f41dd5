-- What there is to look after, seen without a lock: leases that have run out, watches that nobody repeats, workers that are
-- gone. The queues in which something is due, next_due.sql tells; those that keep something for too long, finished.sql
-- and buried.sql.
-- Where an index has all that is asked for, MySQL reads it from end to end if its statistics know of a few rows only, and
-- FORCE INDEX doesn't keep it from that. `status` is in no index, so this is not, and what is asked for is looked up.
-- ORDER BY, where EXISTS would do, for without it MySQL collects rows by the ten thousand before it looks at the first.
SELECT (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_held)
            WHERE locked_until <= %(run_out)s
              AND status = 'processing'
            ORDER BY locked_until
            LIMIT 1
       ) IS NOT NULL AS expired,
       COALESCE(
           (SELECT MIN(since) FROM creche_watches) <= %(now)s - INTERVAL %(watched)s MICROSECOND, FALSE
       ) AS watched,
       COALESCE((SELECT MIN(expires_at) FROM creche_workers) <= %(now)s, FALSE) AS gone
