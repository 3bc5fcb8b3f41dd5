-- When the first lease runs out, for whoever does the upkeep: it looks again at that moment, so that the jobs of a
-- worker that died need not wait for the next round. The index gives all that are processing, which are few.
SELECT min(locked_until) AS expires_at
FROM creche_jobs
WHERE status = 'processing'
