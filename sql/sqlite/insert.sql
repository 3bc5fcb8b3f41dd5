-- Write jobs, but for those in whose place a row stands; which unique index they met does not matter here, find_standing
-- says whose row it is. RETURNING has no order and tells which ones are new.
-- A batch is one statement not to save round trips, there are none, but so that Python's lock is let go of once: with a
-- statement per job, a busy event loop could keep the file's write lock waiting between any two of them.
WITH new AS (
    SELECT
        json_extract(value, '$.id') AS id,
        json_extract(value, '$.queue_name') AS queue_name,
        json_extract(value, '$.type') AS type,
        json_extract(value, '$.payload') AS payload,
        json_extract(value, '$.priority') AS priority,
        json_extract(value, '$.max_attempts') AS max_attempts,
        json_extract(value, '$.available_at') AS available_at,
        json_extract(value, '$.idempotency_key') AS idempotency_key,
        json_extract(value, '$.fingerprint') AS fingerprint,
        json_extract(value, '$.result_ttl') AS result_ttl
    FROM json_each(:jobs)
)
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at,
    idempotency_key, fingerprint, single_flight, result_ttl, created_at, updated_at
)
SELECT
    id, queue_name, type, payload, iif(available_at > :now, 'scheduled', 'pending'), priority, max_attempts, available_at,
    idempotency_key, fingerprint, fingerprint IS NOT NULL, result_ttl, :now, :now
FROM new
WHERE true  -- or the parser would take ON CONFLICT for a join's ON
ON CONFLICT DO NOTHING
RETURNING id, status
