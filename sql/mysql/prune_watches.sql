-- Forget watches that were not repeated for so long that nobody can be behind them, the oldest first.
DELETE w
  FROM (
           SELECT job_id, watcher
             FROM creche_watches FORCE INDEX (creche_watches_since)
            WHERE since <= %(now)s - INTERVAL %(kept)s MICROSECOND
            ORDER BY since
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS old
 STRAIGHT_JOIN creche_watches AS w FORCE INDEX (PRIMARY) ON w.job_id = old.job_id AND w.watcher = old.watcher
