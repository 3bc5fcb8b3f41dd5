-- Seconds until the first lease can be taken back, for whoever does the upkeep: it looks again at that moment, so that the
-- jobs of a worker that died need not wait for the next round. The index gives all that are processing, which are few.
SELECT extract(epoch FROM min(locked_until) - coalesce(%(now)s::timestamptz, now()))::double precision + %(allowance)s
  FROM creche_jobs
 WHERE status = 'processing'
