-- Delete finished jobs of one queue and status whose retention is over, the oldest first; a result that is still fresh
-- keeps its row, and the index knows of it. `status` says nothing new, but is in no index: see overdue.sql.
DELETE j
  FROM (
           SELECT id
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as = %(status)s
              AND queue_name = %(queue)s
              AND status = %(status)s
              AND completed_at <= %(now)s - INTERVAL %(kept)s MICROSECOND
              AND (result_expires_at IS NULL OR result_expires_at <= %(now)s)
            ORDER BY completed_at
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS done
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = done.id
