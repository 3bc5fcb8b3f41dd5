-- claim.sql for a worker that knows only some types, on MariaDB: there a locking read keeps the index entries that it
-- passes over, and a rival of another type would find its own jobs locked (measured: 73 of 83). So the first of these
-- types are looked up without a lock, and then locked by their ids, and by nothing else. Those that a rival took in
-- between are no longer in the queue. What is seen is more than is wanted, for a rival may be taking the first.
SELECT j.id, j.token, j.queue_name, j.type, j.payload, j.priority, j.attempts, j.max_attempts, j.created_at,
       j.available_at, j.origin
  FROM (
           SELECT id
             FROM creche_jobs FORCE INDEX (creche_jobs_ready)
            WHERE ready_queue = %(queue)s
              AND %(wanted)s
              AND (SELECT paused_at FROM creche_queues FORCE INDEX (PRIMARY) WHERE queue_name = %(queue)s) IS NULL
            ORDER BY ready_rank, available_at, id
            LIMIT %(seen)s
       ) AS seen
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = seen.id
 WHERE j.ready_queue = %(queue)s
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED
