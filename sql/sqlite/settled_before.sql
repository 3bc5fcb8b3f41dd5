-- Which of the leases that settle did not find were settled by their own holder before: the answer was lost, and it asks
-- again. Anybody else's touch since would have changed the token.
WITH lease AS (
    SELECT
        json_extract(value, '$.id') AS id,
        json_extract(value, '$.token') AS token,
        json_extract(value, '$.nonce') AS nonce
    FROM json_each(:leases)
)
SELECT job.id, job.token, job.nonce
FROM lease
JOIN creche_jobs AS job ON job.id = lease.id
WHERE job.token = lease.token
    AND job.nonce = lease.nonce
    AND job.status <> 'processing'
