-- Hold the rows that stand in the place of new jobs, for attach.sql and follow_up.sql, which come next in the same
-- transaction, and say which there are. Whoever ends one of these jobs came before, and the next snapshots see it, or
-- waits for us, and finds the callbacks: none is missed, and none is written twice. Locked in one order.
SELECT id, status, result::text
  FROM creche_jobs
 WHERE id = ANY (%(ids)s::uuid[])
 ORDER BY id
   FOR NO KEY UPDATE
