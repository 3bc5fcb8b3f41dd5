-- Write one job unless a row stands in its place. Which unique index it met does not matter here: find_standing says
-- whose row it is. One statement a job: SQLite is in-process, so a batch saves no round trip, and this beat one
-- INSERT … SELECT from a JSON array, which copies every payload twice more.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at,
    idempotency_key, fingerprint, single_flight, result_ttl, created_at, updated_at
)
VALUES (
    :id, :queue_name, :type, :payload, iif(:available_at > :now, 'scheduled', 'pending'), :priority, :max_attempts,
    :available_at, :idempotency_key, :fingerprint, :fingerprint IS NOT NULL, :result_ttl, :now, :now
)
ON CONFLICT DO NOTHING
RETURNING status
