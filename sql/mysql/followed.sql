-- Whom it wakes that these jobs have ended: the queues of what follows them, for follow_up.sql, which comes next, and
-- whoever watches them.
SELECT CAST(c.queue_name AS BINARY) AS woken
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 STRAIGHT_JOIN JSON_TABLE(
           CASE j.status
               WHEN 'completed' THEN JSON_EXTRACT(j.callbacks, '$.success[*]', '$.always[*]')
               WHEN 'failed' THEN JSON_EXTRACT(j.callbacks, '$.failure[*]', '$.always[*]')
               WHEN 'cancelled' THEN JSON_EXTRACT(j.callbacks, '$.always[*]')
           END,
           '$[*]' COLUMNS (queue_name VARCHAR(128) CHARACTER SET utf8mb4 PATH '$.queue_name')
       ) AS c
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NOT NULL
   AND j.callbacks IS NOT NULL
 UNION
SELECT w.watcher
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 STRAIGHT_JOIN creche_watches AS w FORCE INDEX (PRIMARY) ON w.job_id = j.id
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NOT NULL
