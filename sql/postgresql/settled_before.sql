-- Which leases that settle.sql did not find had been settled already, and nobody touched their jobs since: the answer
-- to a settle that was sent twice. A statement of its own: the first one may have been committed while we waited for
-- its lock, and only a new snapshot sees that.
WITH lost AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%(leases)s::json) AS l (id uuid, token bigint, nonce bigint)
)
SELECT j.id, j.token, j.nonce
  FROM lost
  JOIN creche_jobs AS j ON j.id = lost.id AND j.token = lost.token AND j.nonce = lost.nonce
 WHERE j.id = ANY (ARRAY (SELECT lost.id FROM lost))
   AND j.status <> 'processing'
