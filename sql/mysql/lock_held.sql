-- Which leases are held, and their jobs locked until the transaction ends: what delete_unkept.sql then deletes is known by
-- what held.sql no longer finds, for MySQL's DELETE does not say it.
SELECT id, token, nonce
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE %(held)s
   AND status = 'processing'
   FOR UPDATE
