-- Bury jobs whose lease has run out with their last attempt: failed, with a dead letter. Apart from recover.sql, so
-- that each has its own limit, and a count that reached it means that there may be more of that kind.
WITH expired AS MATERIALIZED (
    SELECT id
      FROM creche_jobs
     WHERE status = 'processing'
       AND locked_until <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => %(allowance)s)
       AND attempts >= max_attempts
       AND NOT cancel_requested
     ORDER BY id
     LIMIT %(limit)s
       FOR NO KEY UPDATE SKIP LOCKED
), buried AS (
    UPDATE creche_jobs
       SET status = 'failed',
           token = token + 1,
           nonce = 0,
           locked_until = NULL,
           locked_by = NULL,
           single_flight = false,
           errors = CASE WHEN jsonb_array_length(errors) >= %(kept)s THEN errors - 0 ELSE errors END
               || jsonb_build_array(jsonb_build_object(
                      'attempt', attempts, 'failed_at', coalesce(%(now)s::timestamptz, now()),
                      'type', 'LeaseExpired', 'message', format('the lease of attempt %%s ran out', attempts)
                  )),
           last_error = format('LeaseExpired: the lease of attempt %%s ran out', attempts),
           updated_at = coalesce(%(now)s::timestamptz, now()),
           completed_at = coalesce(%(now)s::timestamptz, now())
     WHERE id = ANY (ARRAY (SELECT expired.id FROM expired))
    RETURNING *
), written AS (
    INSERT INTO creche_dead_letters (
        job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
    )
    SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, completed_at, errors
      FROM buried
        ON CONFLICT (job_id) DO UPDATE
       SET attempts = excluded.attempts, buried_at = excluded.buried_at, errors = excluded.errors
)
SELECT count(*)::integer, array_agg(id)
  FROM buried
