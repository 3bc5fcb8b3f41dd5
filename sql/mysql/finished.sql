-- Which queues have kept a finished job of which status for longer than they should, and how long that is, in
-- microseconds: as long as the queue itself says, or else as long as we were told; the one that is most overdue first.
-- The index is hopped through from one status and queue to the next, as next_due.sql does: of a million jobs that a queue
-- keeps for a year, one is looked at.
SELECT f.queue_name, f.finished_as,
       CASE f.finished_as
           WHEN 'completed' THEN COALESCE(k.keep_completed, %(completed)s)
           WHEN 'failed' THEN COALESCE(k.keep_failed, %(failed)s)
           ELSE COALESCE(k.keep_cancelled, %(cancelled)s)
       END AS kept,
       TIMESTAMPDIFF(MICROSECOND, f.oldest, %(now)s) AS age
  FROM (
           SELECT finished_as, queue_name, MIN(completed_at) AS oldest
             FROM creche_jobs FORCE INDEX (creche_jobs_finished)
            WHERE finished_as IS NOT NULL
            GROUP BY finished_as, queue_name
       ) AS f
  LEFT JOIN creche_queues AS k FORCE INDEX (PRIMARY) ON k.queue_name = f.queue_name
HAVING age >= kept
 ORDER BY age - kept DESC
