-- Hand the first ready jobs to one worker, and say when the next one is due. One statement, one round trip.
-- SKIP LOCKED: rivals take the next rows instead of queueing behind us. Each queue is walked in the order of its
-- index, and the outer LIMIT stops the walk, so exactly as many rows are locked as are taken. MATERIALIZED: without it
-- the planner may run the walk more than once. ANY (ARRAY ...) rather than a join: whatever the planner believes of
-- LIMIT, it then goes to the rows by their ids.
-- A queue that is paused is as if it had not been named. Those that are paused are looked up at once, by their names: it
-- locks nothing, and leaves the names in their order, as a join might not. With a subquery for each name the planner, who
-- takes an unknown array for ten of them, would never keep the plan of a prepared statement.
-- The filter reads now(), for clock_timestamp() can't be an index condition; the lease begins later than the caller
-- asked for it, so that the caller's own deadline always comes first.
WITH queue AS MATERIALIZED (
    SELECT asked.name
      FROM unnest(%(queues)s::text[]) AS asked (name)
     WHERE asked.name <> ALL (ARRAY (
               SELECT q.queue_name
                 FROM creche_queues AS q
                WHERE q.queue_name = ANY (%(queues)s::text[])
                  AND q.paused_at IS NOT NULL
           ))
), claimed AS MATERIALIZED (
    SELECT j.id
      FROM queue
     CROSS JOIN LATERAL (
               SELECT r.id
                 FROM creche_jobs AS r
                WHERE r.queue_name = queue.name
                  AND r.status = 'pending'
                  AND (%(types)s::text[] IS NULL OR r.type = ANY (%(types)s::text[]))
                ORDER BY r.priority DESC, r.available_at, r.id
                LIMIT %(limit)s
                  FOR NO KEY UPDATE SKIP LOCKED
           ) AS j
     LIMIT %(limit)s
), reserved AS (
    UPDATE creche_jobs
       SET status = 'processing',
           attempts = attempts + 1,
           token = token + 1,
           nonce = %(nonce)s,
           locked_by = %(worker)s,
           locked_until = coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(lease)s),
           progress = NULL,
           progress_message = NULL,
           updated_at = coalesce(%(now)s::timestamptz, now())
     WHERE id = ANY (ARRAY (SELECT claimed.id FROM claimed))
    RETURNING id, token, queue_name, type, payload, priority, attempts, max_attempts, created_at, available_at, origin
), due AS (
    SELECT min(s.available_at) AS next
      FROM queue
     CROSS JOIN LATERAL (
               SELECT j.available_at
                 FROM creche_jobs AS j
                WHERE j.queue_name = queue.name
                  AND j.status = 'scheduled'
                ORDER BY j.available_at
                LIMIT 1
           ) AS s
)
SELECT extract(epoch FROM due.next - coalesce(%(now)s::timestamptz, now()))::double precision,
       r.id, r.token, r.queue_name, r.type, r.payload, r.priority, r.attempts, r.max_attempts, r.created_at,
       r.origin
  FROM due
  LEFT JOIN reserved AS r ON true
 ORDER BY array_position(%(queues)s::text[], r.queue_name), r.priority DESC, r.available_at, r.id
