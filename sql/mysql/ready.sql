-- Which of these queues have something ready, and in how many microseconds the next job of each is due. It locks nothing
-- and opens no transaction, so a worker that looks in vain costs next to nothing.
-- Names are made bytes in a table of their own, which DISTINCT keeps the planner from merging: MariaDB remembers what a
-- subquery answered to the outer column, and would take the answer of 'a' for 'A' and 'a ', which a collation holds equal.
-- A queue that is paused has no row, as if it had not been named; claim.sql asks again.
-- ORDER BY names the whole index: by available_at alone, MySQL sorts whatever is scheduled in that queue.
SELECT q.place,
       EXISTS (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_ready)
            WHERE ready_queue = q.name
              AND %(wanted)s
       ) AS ready,
       (
           SELECT TIMESTAMPDIFF(MICROSECOND, %(now)s, available_at)
             FROM creche_jobs FORCE INDEX (creche_jobs_due)
            WHERE due_queue = q.name
            ORDER BY due_queue, available_at
            LIMIT 1
       ) AS due_in
  FROM (
           SELECT DISTINCT place, CAST(name AS BINARY) AS name
             FROM JSON_TABLE(%(queues)s, '$[*]' COLUMNS (
                      place FOR ORDINALITY,
                      name  VARCHAR(128) CHARACTER SET utf8mb4 PATH '$'
                  )) AS sent
       ) AS q
  LEFT JOIN creche_queues AS p FORCE INDEX (PRIMARY) ON p.queue_name = q.name AND p.paused_at IS NOT NULL
 WHERE p.queue_name IS NULL
 ORDER BY q.place
