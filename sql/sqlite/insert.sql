-- Write jobs, but for those in whose place a row stands; which unique index they met does not matter here, find_standing
-- says whose row it is. RETURNING has no order and tells which ones are new.
-- A batch is one statement not to save round trips, there are none, but the work that Python does for each: 2,000 jobs
-- took 28 ms as 2,000 statements and 17 as one; 100 settlements 2.4 and 0.8, 100 renewals 1.0 and 0.25.
-- The first word is INSERT: on a caller's connection, Python's sqlite3 begins no transaction before a WITH.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at,
    idempotency_key, fingerprint, single_flight, result_ttl, callbacks, origin, created_at, updated_at
)
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
        json_extract(value, '$.result_ttl') AS result_ttl,
        json_extract(value, '$.callbacks') AS callbacks,
        json_extract(value, '$.origin') AS origin
    FROM json_each(:jobs)
)
SELECT
    id, queue_name, type, payload, iif(available_at > :now, 'scheduled', 'pending'), priority, max_attempts, available_at,
    idempotency_key, fingerprint, fingerprint IS NOT NULL, result_ttl, callbacks, origin, :now, :now
FROM new
WHERE true  -- or the parser would take ON CONFLICT for a join's ON
ON CONFLICT DO NOTHING
RETURNING id, status
