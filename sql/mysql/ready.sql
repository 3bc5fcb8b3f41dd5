-- Which of these queues have something ready, and in how many microseconds the next job of each is due. It locks nothing
-- and opens no transaction, so a worker that looks in vain costs next to nothing.
SELECT q.place,
       EXISTS (
           SELECT 1
             FROM creche_jobs FORCE INDEX (creche_jobs_ready)
            WHERE ready_queue = CAST(q.name AS BINARY)
              AND %(wanted)s
       ) AS ready,
       (
           SELECT TIMESTAMPDIFF(MICROSECOND, %(now)s, available_at)
             FROM creche_jobs FORCE INDEX (creche_jobs_due)
            WHERE due_queue = CAST(q.name AS BINARY)
            ORDER BY available_at
            LIMIT 1
       ) AS due_in
  FROM JSON_TABLE(%(queues)s, '$[*]' COLUMNS (place FOR ORDINALITY, name VARCHAR(128) CHARACTER SET utf8mb4 PATH '$')) AS q
 ORDER BY q.place
