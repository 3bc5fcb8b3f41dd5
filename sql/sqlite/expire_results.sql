-- Let go of a fingerprint whose cached result is stale, so that the insert after it finds the place free. Only here, and
-- when somebody asks for the same again: no sweep has to run for a result to expire on time.
UPDATE creche_jobs
SET single_flight = 0
WHERE fingerprint = :fingerprint
    AND single_flight = 1
    AND result_expires_at <= :now
