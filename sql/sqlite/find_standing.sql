-- Find the row that stands in the place of a job that was not inserted: its own (it was sent before), else the one that
-- has its idempotency key, else the one that holds its fingerprint. coalesce stops at the first that is there.
SELECT id, status, fingerprint, result, queue_name, callbacks
FROM creche_jobs
WHERE rowid = coalesce(
    (SELECT rowid FROM creche_jobs WHERE id = :id),
    (SELECT rowid FROM creche_jobs WHERE queue_name = :queue_name AND idempotency_key = :idempotency_key),
    (SELECT rowid FROM creche_jobs WHERE fingerprint = :fingerprint AND single_flight = 1)
)
