-- How these jobs stand, and who holds those that run.
SELECT id, status, locked_by
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
