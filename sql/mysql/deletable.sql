-- Lock the jobs that are to be deleted, and say how each stands: those that are over go in the same transaction.
SELECT id, status
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
 ORDER BY id
   FOR UPDATE
