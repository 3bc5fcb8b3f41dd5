-- For how many microseconds a queue has had a finished job of one status to prune, seen without a lock; NULL: there is none,
-- for the oldest may be a result that is still fresh. `status` says nothing new, but is in no index: see overdue.sql.
SELECT (
           SELECT TIMESTAMPDIFF(MICROSECOND, completed_at, %(now)s) - %(kept)s
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = %(status)s
              AND queue_name = %(queue)s
              AND status = %(status)s
              AND completed_at <= %(now)s - INTERVAL %(kept)s MICROSECOND
              AND (result_expires_at IS NULL OR result_expires_at <= %(now)s)
            ORDER BY completed_at
            LIMIT 1
       ) AS overdue
