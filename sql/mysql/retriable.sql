-- Lock the jobs that are to be retried, and say how each stands.
SELECT id, status, fingerprint, queue_name
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
 ORDER BY id
   FOR UPDATE
