-- Which of these leases are settled, now or before, with nobody having touched their jobs since: the second is the answer
-- to a settle that was sent twice. A statement of its own, for only a new snapshot sees what was committed while the
-- first one waited for its locks. `woken`: the queue, if the job goes on at once or soon.
SELECT id, token, nonce,
       IF(
           status = 'pending'
           OR status = 'scheduled' AND available_at < updated_at + INTERVAL %(horizon)s MICROSECOND,
           queue_name, NULL
       ) AS woken
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE id IN (%(ids)s)
   AND (id, token, nonce) IN (%(leases)s)
   AND status <> 'processing'
