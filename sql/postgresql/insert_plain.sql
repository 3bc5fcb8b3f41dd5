-- Write a batch of jobs that are ready now and have no names: nothing can stand in the place of one but itself, sent
-- before. So the number of rows that were written says it all, and none of them is told of by itself.
-- The columns travel as arrays in PostgreSQL's own binary form, of which the server reads each value once: measured, for a
-- thousand jobs 8 µs each instead of 12 as one JSON document, for a single one 250 instead of 270, the client's share left
-- out. A document has to be read as a whole first, then field by field, and its payloads a third time.
-- statement_timestamp(): this is one of several statements, if the jobs are many.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at, updated_at
)
SELECT n.id, n.queue_name, n.type, n.payload, 'pending', n.priority, n.max_attempts, clock.now, clock.now, clock.now
  FROM unnest(
           %(ids)s::uuid[], %(queue_names)s::text[], %(types)s::text[], %(payloads)s::json[],
           %(priorities)s::smallint[], %(max_attempts)s::integer[]
       ) AS n (id, queue_name, type, payload, priority, max_attempts)
 CROSS JOIN (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now) AS clock
    ON CONFLICT DO NOTHING
