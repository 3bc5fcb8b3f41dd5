-- Lock the rows that answer for jobs which bring callbacks, and say how each stands: nothing changes below the lock. Of
-- the callbacks that it has, the ids.
SELECT id, status, fingerprint, CAST(result AS BINARY), flight IS NOT NULL, result_expires_at <= %(now)s,
       queue_name, JSON_EXTRACT(callbacks, '$.*[*].id')
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
 ORDER BY id
   FOR UPDATE
