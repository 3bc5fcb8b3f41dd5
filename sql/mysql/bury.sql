-- End jobs whose last attempt's lease has run out: an attempt counts when it is reserved, so a job that kills its process
-- ends here. write_dead_letters.sql copies them in the same transaction.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET status = 'failed',
       token = token + 1,
       nonce = 0,
       locked_until = NULL,
       locked_by = NULL,
       single_flight = FALSE,
       errors = JSON_MERGE_PRESERVE(
           IF(JSON_LENGTH(errors) >= %(kept)s, JSON_REMOVE(errors, '$[0]'), errors),
           JSON_OBJECT(
               'attempt', attempts, 'failed_at', DATE_FORMAT(%(now)s, '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ'),
               'type', 'LeaseExpired', 'message', CONCAT('the lease of attempt ', attempts, ' ran out')
           )
       ),
       last_error = CONCAT('LeaseExpired: the lease of attempt ', attempts, ' ran out'),
       updated_at = %(now)s,
       completed_at = %(now)s
 WHERE id IN (%(ids)s)
