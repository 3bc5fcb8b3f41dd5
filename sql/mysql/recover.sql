-- Take back jobs whose lease has run out and that may run again; a new token tells a holder that is still alive.
-- Each is due a little later, at a moment of its own, or the one that kills its worker would take its neighbours along.
-- The delay is creche._backoff.recovery_delay: two bytes of the id, the last three pairs of which take turns, say what
-- part of 1, 2, 4 … 64 s. SKIP LOCKED: a row that a rival, or its late holder, is writing is not waited for.
UPDATE (
           SELECT id
             FROM creche_jobs FORCE INDEX (creche_jobs_held)
            WHERE locked_until <= %(now)s
              AND (attempts < max_attempts OR cancel_requested)
            ORDER BY locked_until
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS expired
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = expired.id
   SET j.status = IF(j.cancel_requested, 'cancelled', 'scheduled'),
       j.available_at = IF(
           j.cancel_requested,
           j.available_at,
           %(now)s + INTERVAL (
               CAST(CONV(HEX(SUBSTRING(j.id, 11 + 2 * ((j.attempts - 1) MOD 3), 2)), 16, 10) AS SIGNED)
               * 1000000 * (1 << LEAST(j.attempts - 1, 6)) DIV 65536
           ) MICROSECOND
       ),
       j.token = j.token + 1,
       j.nonce = 0,
       j.locked_until = NULL,
       j.locked_by = NULL,
       j.single_flight = j.single_flight AND NOT j.cancel_requested,
       j.errors = JSON_MERGE_PRESERVE(
           IF(JSON_LENGTH(j.errors) >= %(kept)s, JSON_REMOVE(j.errors, '$[0]'), j.errors),
           JSON_OBJECT(
               'attempt', j.attempts, 'failed_at', DATE_FORMAT(%(now)s, '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ'),
               'type', 'LeaseExpired', 'message', CONCAT('the lease of attempt ', j.attempts, ' ran out')
           )
       ),
       j.last_error = CONCAT('LeaseExpired: the lease of attempt ', j.attempts, ' ran out'),
       j.updated_at = %(now)s,
       j.completed_at = IF(j.cancel_requested, %(now)s, NULL)
