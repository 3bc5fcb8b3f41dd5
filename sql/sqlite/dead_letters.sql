-- A page of dead letters, newest job first.
SELECT job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
FROM creche_dead_letters
WHERE job_id < coalesce(:before, 'g')  -- after every hexadecimal digit
ORDER BY job_id DESC
LIMIT :limit
