-- Delete dead letters of one queue that are as old as its failed jobs may grow, the oldest first. `attempts` says nothing,
-- but is in no index: see overdue.sql.
DELETE d
  FROM (
           SELECT job_id
             FROM creche_dead_letters FORCE INDEX (creche_dead_letters_buried)
            WHERE queue_name = %(queue)s
              AND buried_at <= %(now)s - INTERVAL %(kept)s MICROSECOND
              AND attempts >= 0
            ORDER BY buried_at
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS old
 STRAIGHT_JOIN creche_dead_letters AS d FORCE INDEX (PRIMARY) ON d.job_id = old.job_id
