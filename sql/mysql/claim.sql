-- Lock the first ready jobs of one queue, for reserve.sql, which comes next in the same transaction. SKIP LOCKED: rivals
-- take the next rows instead of queueing behind us. The index has exactly this order, so no more rows are locked than
-- are taken; a filesort would lock every job that waits.
SELECT id, token, queue_name, type, payload, priority, attempts, max_attempts, created_at, available_at, origin
  FROM creche_jobs FORCE INDEX (creche_jobs_ready)
 WHERE ready_queue = %(queue)s
   AND %(wanted)s
 ORDER BY ready_rank, available_at, id
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
