-- What there is to look after, seen without a lock: leases that have run out, rows past their retention, watches that nobody repeats. The queues in
-- which something is due, next_due.sql tells.
-- Where an index has all that is asked for, MySQL reads it from end to end if its statistics know of a few rows only, and
-- FORCE INDEX doesn't keep it from that. `status` is in no index, so these are not, and what is asked for is looked up.
-- ORDER BY, where EXISTS would do, for without it MySQL collects rows by the ten thousand before it looks at the first.
SELECT (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_held)
            WHERE locked_until <= %(now)s
              AND status = 'processing'
            ORDER BY locked_until
            LIMIT 1
       ) IS NOT NULL AS expired,
       (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'completed'
              AND status = 'completed'
              AND completed_at <= %(now)s - INTERVAL %(completed)s MICROSECOND
              AND (result_expires_at IS NULL OR result_expires_at <= %(now)s)
            ORDER BY completed_at
            LIMIT 1
       ) IS NOT NULL AS completed,
       (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'failed'
              AND status = 'failed'
              AND completed_at <= %(now)s - INTERVAL %(failed)s MICROSECOND
            ORDER BY completed_at
            LIMIT 1
       ) IS NOT NULL AS failed,
       (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'cancelled'
              AND status = 'cancelled'
              AND completed_at <= %(now)s - INTERVAL %(cancelled)s MICROSECOND
            ORDER BY completed_at
            LIMIT 1
       ) IS NOT NULL AS cancelled,
       COALESCE(
           (SELECT MIN(buried_at) FROM creche_dead_letters) <= %(now)s - INTERVAL %(failed)s MICROSECOND, FALSE
       ) AS dead,
       COALESCE(
           (SELECT MIN(since) FROM creche_watches) <= %(now)s - INTERVAL %(watched)s MICROSECOND, FALSE
       ) AS watched
