-- End attempts that succeeded, of jobs that are kept for no time: their rows go at once, and nothing has to prune them. Those
-- that others follow, whose result is cached or whose queue keeps them are left to settle.sql.
WITH settlement AS MATERIALIZED (
    SELECT
        json_extract(value, '$.id') AS id,
        json_extract(value, '$.token') AS token,
        json_extract(value, '$.nonce') AS nonce
    FROM json_each(:leases)
)
DELETE FROM creche_jobs
WHERE rowid IN (
    SELECT job.rowid
    FROM settlement
    CROSS JOIN creche_jobs AS job ON job.id = settlement.id
    WHERE job.token = settlement.token
        AND job.nonce = settlement.nonce
        AND job.status = 'processing'
        AND job.callbacks IS NULL
        AND job.result_ttl IS NULL
        AND job.queue_name NOT IN (SELECT queue.queue_name FROM creche_queues AS queue WHERE queue.keep_completed > 0)
)
RETURNING id, token, nonce
