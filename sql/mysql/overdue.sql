-- What there is to look after, seen without a lock: leases that have run out, rows past their retention. The queues in
-- which something is due, next_due.sql tells.
SELECT EXISTS (
           SELECT 1 FROM creche_jobs FORCE INDEX (creche_jobs_held) WHERE locked_until <= %(now)s
       ) AS expired,
       EXISTS (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'completed'
              AND completed_at <= %(now)s - INTERVAL %(completed)s MICROSECOND
              AND (result_expires_at IS NULL OR result_expires_at <= %(now)s)
       ) AS completed,
       EXISTS (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'failed'
              AND completed_at <= %(now)s - INTERVAL %(failed)s MICROSECOND
       ) AS failed,
       EXISTS (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = 'cancelled'
              AND completed_at <= %(now)s - INTERVAL %(cancelled)s MICROSECOND
       ) AS cancelled,
       EXISTS (
           SELECT 1 FROM creche_dead_letters WHERE buried_at <= %(now)s - INTERVAL %(failed)s MICROSECOND
       ) AS dead
