-- Copy jobs that have just been buried, in the transaction that buried them.
INSERT INTO creche_dead_letters (
    job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
)
SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, completed_at, errors
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE %(buried)s
   AND status = 'failed'
    ON DUPLICATE KEY UPDATE attempts = j.attempts, buried_at = j.completed_at, errors = j.errors
