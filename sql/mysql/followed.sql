-- Whom it wakes that these jobs have ended: the queues of what follows them, for follow_up.sql, which comes next, and
-- whoever watches them, by their names in hexadecimal; an array of each, for each job that has any. No join: most jobs
-- that end are followed by nothing and watched by nobody, and are not to pay for it.
SELECT CASE j.status
           WHEN 'completed' THEN JSON_EXTRACT(j.callbacks, '$.success[*].queue_name', '$.always[*].queue_name')
           WHEN 'failed' THEN JSON_EXTRACT(j.callbacks, '$.failure[*].queue_name', '$.always[*].queue_name')
           WHEN 'cancelled' THEN JSON_EXTRACT(j.callbacks, '$.always[*].queue_name')
       END AS queues,
       (
           SELECT JSON_ARRAYAGG(HEX(w.watcher))
             FROM creche_watches AS w FORCE INDEX (PRIMARY)
            WHERE w.job_id = j.id
       ) AS watchers
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NOT NULL
HAVING queues IS NOT NULL
    OR watchers IS NOT NULL
