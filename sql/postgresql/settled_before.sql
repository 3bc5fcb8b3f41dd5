-- Which leases that settle.sql did not find had been settled already, and nobody touched their jobs since: the answer
-- to a settle that was sent twice. A statement of its own: the first one may have been committed while we waited for
-- its lock, and only a new snapshot sees that.
SELECT j.id, j.token, j.nonce
  FROM json_to_recordset(%(leases)s::json) AS l (id uuid, token bigint, nonce bigint)
  JOIN creche_jobs AS j ON j.id = l.id
 WHERE j.token = l.token
   AND j.nonce = l.nonce
   AND j.status <> 'processing'
