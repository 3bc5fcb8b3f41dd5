-- Let go of a fingerprint whose cached result is stale, so that what comes next finds its place free: an insert, or a
-- retry, which names its job instead. Only here, when somebody asks for the same again: no sweep has to run for a result
-- to expire on time.
UPDATE creche_jobs
SET single_flight = 0
WHERE fingerprint = coalesce(:fingerprint, (SELECT fingerprint FROM creche_jobs WHERE id = :id))
    AND single_flight = 1
    AND result_expires_at <= :now
