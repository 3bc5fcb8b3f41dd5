-- Which of these jobs exist, and where in their life they are.
SELECT id, status
FROM creche_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
