-- Cancel what waits, and ask the holder of what runs. A holder's lease stays good until it has answered, so only what
-- waited gets a new token. The status is assigned last: MySQL reads what it has assigned before.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET cancel_requested = cancel_requested OR status = 'processing',
       token = token + (status <> 'processing'),
       nonce = IF(status = 'processing', nonce, 0),
       single_flight = single_flight AND status = 'processing',
       updated_at = %(now)s,
       completed_at = IF(status = 'processing', NULL, %(now)s),
       status = IF(status = 'processing', status, 'cancelled')
 WHERE id IN (%(ids)s)
   AND status IN ('pending', 'scheduled', 'processing')
