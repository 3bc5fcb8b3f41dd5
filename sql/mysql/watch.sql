-- How these jobs ended, for whoever waits for them: no payloads, and of those that are active nothing but their status.
SELECT id, status, CAST(result AS BINARY), IF(status = 'failed', errors, NULL)
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
