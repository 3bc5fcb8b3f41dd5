-- The workers that are there, with the jobs that each holds: those of creche_jobs_held, of which there are never more
-- than run at the moment.
SELECT w.presence, w.started_at, w.seen_at, j.id, j.queue_name, j.type, j.attempts,
       extract(epoch FROM j.locked_until - coalesce(%(now)s::timestamptz, now()))::double precision AS lease_left,
       j.progress, j.progress_message
  FROM creche_workers AS w
  LEFT JOIN creche_jobs AS j ON j.status = 'processing' AND j.locked_by = w.name
 WHERE w.expires_at > coalesce(%(now)s::timestamptz, now())
 ORDER BY w.name, j.id
