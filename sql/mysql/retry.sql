-- Make failed, cancelled and scheduled jobs ready now. (Should a dispatch take a fingerprint at this very moment, the
-- unique index refuses this statement, and the whole transaction is run again.) The status is assigned last: MySQL reads
-- what it has assigned before.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET attempts = IF(status = 'scheduled', attempts, 0),
       available_at = %(now)s,
       token = token + 1,
       nonce = 0,
       cancel_requested = FALSE,
       single_flight = fingerprint IS NOT NULL,
       updated_at = %(now)s,
       completed_at = NULL,
       status = 'pending'
 WHERE id IN (%(ids)s)
   AND status IN ('failed', 'cancelled', 'scheduled')
