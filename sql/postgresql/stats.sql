-- How many jobs stand where, and since when the first ready one has been due. It counts the whole table: for people
-- who look now and then, not for a loop.
SELECT queue_name, status, count(*),
       CASE WHEN status = 'pending' THEN
           greatest(0, extract(epoch FROM coalesce(%(now)s::timestamptz, now()) - min(available_at)))::double precision
       END AS oldest_ready
  FROM creche_jobs
 GROUP BY queue_name, status
 ORDER BY queue_name, status
