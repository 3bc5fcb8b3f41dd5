-- How many jobs stand where, since how many microseconds the first ready one has been due, and how many have come to an
-- end just now. It counts the whole table: for people who look now and then, not for a loop.
SELECT queue_name, status, COUNT(*),
       IF(status = 'pending', GREATEST(0, TIMESTAMPDIFF(MICROSECOND, MIN(available_at), %(now)s)), NULL) AS oldest_ready,
       COUNT(IF(completed_at > %(now)s - INTERVAL %(window)s MICROSECOND, 1, NULL)) AS finished
  FROM creche_jobs
 GROUP BY queue_name, status
 ORDER BY queue_name, status
