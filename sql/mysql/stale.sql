-- Whether a queue has a finished job of one status to prune, seen without a lock: the oldest may be a result that is still
-- fresh. `status` says nothing new, but is in no index: see overdue.sql.
SELECT (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = %(status)s
              AND queue_name = %(queue)s
              AND status = %(status)s
              AND completed_at <= %(now)s - INTERVAL %(kept)s MICROSECOND
              AND (result_expires_at IS NULL OR result_expires_at <= %(now)s)
            ORDER BY completed_at
            LIMIT 1
       ) IS NOT NULL AS stale
