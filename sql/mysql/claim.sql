-- Lock the first ready jobs of one queue, for reserve.sql, which comes next in the same transaction. SKIP LOCKED: rivals
-- take the next rows instead of queueing behind us. The index has exactly this order, so no more rows are locked than
-- are taken; a filesort would lock every job that waits.
-- Whether the queue is paused is a constant to the planner, which looks there first and without a lock, and then for no job
-- at all: NOT EXISTS would be joined, and asked below the lock of each job.
SELECT id, token, queue_name, type, payload, priority, attempts, max_attempts, created_at, available_at, origin
  FROM creche_jobs FORCE INDEX (creche_jobs_ready)
 WHERE ready_queue = %(queue)s
   AND %(wanted)s
   AND (SELECT paused_at FROM creche_queues FORCE INDEX (PRIMARY) WHERE queue_name = %(queue)s) IS NULL
 ORDER BY ready_rank, available_at, id
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
