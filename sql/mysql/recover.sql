-- Take back jobs whose lease has run out and that may run again; a new token tells a holder that is still alive.
-- Each is due a little later, at a moment of its own, or the one that kills its worker would take its neighbours along.
-- The delay is creche._backoff.recovery_delay: two bytes of the id, the last three pairs of which take turns, say what
-- part of 1, 2, 4 … 64 s. expired.sql has locked them.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET status = IF(cancel_requested, 'cancelled', 'scheduled'),
       available_at = IF(
           cancel_requested,
           available_at,
           %(now)s + INTERVAL (
               CAST(CONV(HEX(SUBSTRING(id, 11 + 2 * ((attempts - 1) MOD 3), 2)), 16, 10) AS SIGNED)
               * 1000000 * (1 << LEAST(attempts - 1, 6)) DIV 65536
           ) MICROSECOND
       ),
       token = token + 1,
       nonce = 0,
       locked_until = NULL,
       locked_by = NULL,
       single_flight = single_flight AND NOT cancel_requested,
       errors = JSON_MERGE_PRESERVE(
           IF(JSON_LENGTH(errors) >= %(kept)s, JSON_REMOVE(errors, '$[0]'), errors),
           JSON_OBJECT(
               'attempt', attempts, 'failed_at', DATE_FORMAT(%(now)s, '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ'),
               'type', 'LeaseExpired', 'message', CONCAT('the lease of attempt ', attempts, ' ran out')
           )
       ),
       last_error = CONCAT('LeaseExpired: the lease of attempt ', attempts, ' ran out'),
       updated_at = %(now)s,
       completed_at = IF(cancel_requested, %(now)s, NULL)
 WHERE id IN (%(ids)s)
