-- Which of the leases that settle did not find were settled by their own holder before: the answer was lost, and it asks
-- again. Anybody else's touch since would have changed the token.
SELECT job.id
FROM json_each(:settlements) AS settlement
JOIN creche_jobs AS job ON job.id = json_extract(settlement.value, '$.id')
WHERE job.token = json_extract(settlement.value, '$.token')
    AND job.nonce = json_extract(settlement.value, '$.nonce')
    AND job.status <> 'processing'
