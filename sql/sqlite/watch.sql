-- How some jobs ended, for whoever waits for them; no payload, and errors only of those that failed.
SELECT id, status, result, iif(status = 'failed', errors, NULL) AS errors
FROM creche_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
