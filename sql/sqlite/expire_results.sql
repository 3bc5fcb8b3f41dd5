-- Let go of fingerprints whose cached result is stale, so that the insert (or the retry) after it finds its place free.
-- Only here, when somebody asks for the same again: no sweep has to run for a result to expire on time.
UPDATE creche_jobs
SET single_flight = 0
WHERE fingerprint IN (SELECT value FROM json_each(:fingerprints))
    AND single_flight = 1
    AND result_expires_at <= :now
