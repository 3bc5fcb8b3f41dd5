-- Which of these leases are settled, now or before, with nobody having touched their jobs since: the second is the answer
-- to a settle that was sent twice. A statement of its own, for only a new snapshot sees what was committed while the
-- first one waited for its locks. `woken`: the queue, if the job goes on at once or soon; `watchers`: who is to be woken
-- when it is over, in hexadecimal. `left_out`: not settled yet, for it has callbacks and settle.sql was told to leave those
-- out. No join: most jobs are watched by nobody, and are not to pay for it.
SELECT id, token, nonce,
       IF(
           status = 'pending'
           OR status = 'scheduled' AND available_at < updated_at + INTERVAL %(horizon)s MICROSECOND,
           queue_name, NULL
       ) AS woken,
       IF(
           completed_at IS NULL, NULL,
           (
               SELECT JSON_ARRAYAGG(HEX(w.watcher))
                 FROM creche_watches AS w FORCE INDEX (PRIMARY)
                WHERE w.job_id = j.id
           )
       ) AS watchers,
       status = 'processing' AS left_out
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE %(held)s
   AND (status <> 'processing' OR callbacks IS NOT NULL)
