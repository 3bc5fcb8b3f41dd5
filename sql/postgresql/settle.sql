-- End attempts: results, retries, releases and dead letters of a whole batch in one statement, fenced by the whole
-- lease. What follows from which event is decided in creche._lifecycle; only what the row itself knows is decided
-- here: whether a cancellation was asked for, and by the database's clock whether the job is due already.
-- Nearly no job has callbacks, and to plan follow_up.sql takes as long as this statement. So it is sent alone first, and
-- ends nothing if a job of the batch has some (or all but one that gets its first while this waits for it); then it is
-- sent again, `followed` by that one in the same transaction.
-- statement_timestamp(): within a handler's transaction, now() may be long ago. ANY (ARRAY ...): see extend.sql.
WITH ended AS MATERIALIZED (
    SELECT n.*, clock.now,
           CASE WHEN n.due THEN coalesce(n.available_at, clock.now + make_interval(secs => n.delay)) END AS due_at
      FROM json_to_recordset(%(settlements)s::json) AS n (  -- what an element does not have is NULL
               id uuid, token bigint, nonce bigint, status text, goes_on boolean, gives_back boolean,
               due boolean, delay double precision, available_at timestamptz,
               result text, error text, last_error text, followed boolean
           )
     CROSS JOIN (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now) AS clock
), settled AS (
    UPDATE creche_jobs AS j
       SET status = CASE
               WHEN s.goes_on IS NOT TRUE THEN s.status
               WHEN j.cancel_requested THEN 'cancelled'
               WHEN s.due_at <= s.now THEN 'pending'
               ELSE s.status
           END,
           attempts = j.attempts - coalesce(s.gives_back, false)::integer,
           available_at = CASE
               WHEN s.goes_on AND NOT j.cancel_requested THEN coalesce(s.due_at, j.available_at)
               ELSE j.available_at
           END,
           locked_until = NULL,
           locked_by = NULL,
           single_flight = j.single_flight AND CASE
               WHEN s.goes_on THEN NOT j.cancel_requested
               ELSE s.status = 'completed' AND j.result_ttl IS NOT NULL
           END,
           result = s.result::json,
           result_expires_at = CASE WHEN s.status = 'completed' THEN s.now + make_interval(secs => j.result_ttl) END,
           errors = CASE
               WHEN s.error IS NULL THEN j.errors
               ELSE CASE WHEN jsonb_array_length(j.errors) >= %(kept)s THEN j.errors - 0 ELSE j.errors END
                    || jsonb_build_array(
                           jsonb_build_object('attempt', j.attempts, 'failed_at', s.now) || s.error::jsonb
                       )
           END,
           last_error = coalesce(s.last_error, j.last_error),
           updated_at = s.now,
           completed_at = CASE WHEN s.goes_on IS NOT TRUE OR j.cancel_requested THEN s.now END
      FROM ended AS s
     WHERE j.id = ANY (ARRAY (SELECT ended.id FROM ended))
       AND j.id = s.id
       AND j.token = s.token
       AND j.nonce = s.nonce
       AND j.status = 'processing'
       AND (
               s.followed
            OR j.callbacks IS NULL  -- also after waiting for whoever was recording some
               AND NOT EXISTS (
                       SELECT
                         FROM creche_jobs AS other
                        WHERE other.id = ANY (ARRAY (SELECT ended.id FROM ended))
                          AND other.callbacks IS NOT NULL
                   )
           )
    RETURNING j.id, j.token, j.nonce, j.queue_name, j.type, j.payload, j.status, j.priority, j.attempts, j.max_attempts,
              j.available_at, j.errors, j.created_at, j.updated_at, j.completed_at
), buried AS (
    INSERT INTO creche_dead_letters (
        job_id, queue_name, type, payload, priority, attempts, max_attempts, created_at, buried_at, errors
    )
    SELECT id, queue_name, type, payload, priority, attempts, max_attempts, created_at, completed_at, errors
      FROM settled
     WHERE status = 'failed'
        ON CONFLICT (job_id) DO UPDATE
       SET attempts = excluded.attempts, buried_at = excluded.buried_at, errors = excluded.errors
)
-- What was left comes back, and whom to wake: a batch of which all was ended, as nearly all are, answers with nothing.
SELECT e.id, e.token, e.nonce, NULL AS woken
  FROM ended AS e
 WHERE (e.id, e.token, e.nonce) NOT IN (SELECT s.id, s.token, s.nonce FROM settled AS s)
 UNION ALL
SELECT DISTINCT NULL::uuid, NULL::bigint, NULL::bigint, s.queue_name
  FROM settled AS s
 WHERE s.status = 'pending'
    OR s.status = 'scheduled' AND s.available_at < s.updated_at + make_interval(secs => %(horizon)s)
 UNION ALL
SELECT NULL, NULL, NULL, w.watcher
  FROM creche_watches AS w
 WHERE w.job_id = ANY (ARRAY (SELECT settled.id FROM settled WHERE settled.completed_at IS NOT NULL))
