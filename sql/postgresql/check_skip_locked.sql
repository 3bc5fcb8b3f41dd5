-- Lock one finished job, or this one, and pass over it if somebody has it. Nobody reserves finished jobs.
SELECT id
  FROM creche_jobs
 WHERE completed_at IS NOT NULL
   AND (%(id)s::uuid IS NULL OR id = %(id)s::uuid)
 ORDER BY queue_name, status, completed_at
 LIMIT 1
   FOR NO KEY UPDATE SKIP LOCKED
