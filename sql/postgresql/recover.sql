-- Take back jobs whose lease has run out and that may run again; a new token tells a holder that is still alive.
-- Each is due a little later, at a moment of its own, or the one that kills its worker would take its neighbours along.
-- The delay is creche._backoff.recovery_delay: four hexadecimal digits of the id, the last three groups of which take
-- turns, say what part of 1, 2, 4 … 64 s. SKIP LOCKED: a row that a rival, or its late holder, is writing is not waited
-- for. The allowance is for a lease that another server gave, by its own clock, before this one took its place.
WITH expired AS MATERIALIZED (
    SELECT id
      FROM creche_jobs
     WHERE status = 'processing'
       AND locked_until <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => %(allowance)s)
       AND (attempts < max_attempts OR cancel_requested)
     ORDER BY id
     LIMIT %(limit)s
       FOR NO KEY UPDATE SKIP LOCKED
), recovered AS (
    UPDATE creche_jobs
       SET status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'scheduled' END,
           available_at = CASE
               WHEN cancel_requested THEN available_at
               ELSE coalesce(%(now)s::timestamptz, now()) + interval '1 microsecond' * (
                   ('x' || substr(id::text, 25 + 4 * ((attempts - 1) %% 3), 4))::bit(16)::integer::bigint
                   * 1000000 * (1 << least(attempts - 1, 6)) / 65536
               )
           END,
           token = token + 1,
           nonce = 0,
           locked_until = NULL,
           locked_by = NULL,
           single_flight = single_flight AND NOT cancel_requested,
           errors = CASE WHEN jsonb_array_length(errors) >= %(kept)s THEN errors - 0 ELSE errors END
               || jsonb_build_array(jsonb_build_object(
                      'attempt', attempts, 'failed_at', coalesce(%(now)s::timestamptz, now()),
                      'type', 'LeaseExpired', 'message', format('the lease of attempt %%s ran out', attempts)
                  )),
           last_error = format('LeaseExpired: the lease of attempt %%s ran out', attempts),
           updated_at = coalesce(%(now)s::timestamptz, now()),
           completed_at = CASE WHEN cancel_requested THEN coalesce(%(now)s::timestamptz, now()) END
     WHERE id = ANY (ARRAY (SELECT expired.id FROM expired))
    RETURNING id, completed_at
)
SELECT count(*)::integer, array_agg(id) FILTER (WHERE completed_at IS NOT NULL)
  FROM recovered
