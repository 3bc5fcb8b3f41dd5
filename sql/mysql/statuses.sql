-- How these jobs stand.
SELECT id, status
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
