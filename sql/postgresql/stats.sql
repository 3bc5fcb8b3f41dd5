-- How many jobs stand where, how many ended just now, since when the first ready one has been due, and what is set of
-- each queue, also of those that have no jobs. It counts the whole table: for people who look now and then, not for a
-- loop.
WITH counted AS (
    SELECT queue_name, status, count(*) AS jobs,
           count(*) FILTER (
               WHERE completed_at > coalesce(%(now)s::timestamptz, now()) - make_interval(secs => %(window)s)
           ) AS finished,
           CASE WHEN status = 'pending' THEN
               greatest(0, extract(epoch FROM coalesce(%(now)s::timestamptz, now()) - min(available_at)))
           END::double precision AS oldest_ready
      FROM creche_jobs
     GROUP BY queue_name, status
)
SELECT queue_name, c.status, c.jobs, c.oldest_ready, c.finished,
       q.paused_at, q.keep_completed, q.keep_failed, q.keep_cancelled
  FROM counted AS c
  FULL JOIN creche_queues AS q USING (queue_name)
 ORDER BY queue_name, c.status
