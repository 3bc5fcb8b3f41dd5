-- Which queues have kept a dead letter for longer than failed jobs may be, and how long that is, in microseconds: see
-- finished.sql.
SELECT b.queue_name, COALESCE(k.keep_failed, %(failed)s) AS kept, TIMESTAMPDIFF(MICROSECOND, b.oldest, %(now)s) AS age
  FROM (
           SELECT queue_name, MIN(buried_at) AS oldest
             FROM creche_dead_letters FORCE INDEX (creche_dead_letters_buried)
            GROUP BY queue_name
       ) AS b
  LEFT JOIN creche_queues AS k FORCE INDEX (PRIMARY) ON k.queue_name = b.queue_name
HAVING age >= kept
 ORDER BY age - kept DESC
