-- Note who is to be woken when these jobs are over. Locked in one order. What was noted is noted again only when a good
-- part of its time is over: who waits for a thousand jobs asks every second, and that must not be a thousand writes.
INSERT INTO creche_watches (job_id, watcher, since)
SELECT j.id, %(watcher)s, now()
  FROM creche_jobs AS j
 WHERE j.id = ANY (%(ids)s::uuid[])
   AND j.completed_at IS NULL
 ORDER BY j.id
    ON CONFLICT (job_id, watcher) DO UPDATE
   SET since = excluded.since
 WHERE creche_watches.since < excluded.since - make_interval(secs => %(again)s)
