-- Write the callbacks that the ends of these jobs call for, and say whom to wake: the queues they stand in now, and who
-- watches the jobs. It comes after the statement that ended them, in its transaction: a statement of its own, so that
-- it sees what that one left, which may be a later version of the row than that one began with. Whoever records a
-- callback waits for the row or was waited for.
-- What was called for is gone from the row, so this can be run again: what stands in a finished row is for another end.
WITH ended AS MATERIALIZED (
    SELECT j.id, j.type, j.queue_name, j.status, j.result, j.errors, j.callbacks,
           CASE j.status
               WHEN 'completed' THEN ARRAY['success', 'always']
               WHEN 'failed' THEN ARRAY['failure', 'always']
               ELSE ARRAY['always']
           END AS called_for
      FROM creche_jobs AS j
     WHERE j.id = ANY (%(ids)s::uuid[])
       AND j.completed_at IS NOT NULL
), due AS MATERIALIZED (
    SELECT ended.id AS followed, each.callback,
           coalesce(ended.result::text, 'null') AS result,
           json_strip_nulls(json_build_object(
               'id', ended.id, 'type', ended.type, 'queue_name', ended.queue_name, 'status', ended.status,
               'error', CASE WHEN ended.status = 'failed' THEN (ended.errors -> -1) - 'attempt' - 'failed_at' END
           )) AS origin
      FROM ended
     CROSS JOIN LATERAL unnest(ended.called_for) AS called (key)
     CROSS JOIN LATERAL jsonb_array_elements(ended.callbacks -> called.key) AS each (callback)
), done AS (
    UPDATE creche_jobs AS j
       SET callbacks = nullif(j.callbacks - ended.called_for, '{}')
      FROM ended
     WHERE j.id = ANY (ARRAY (SELECT due.followed FROM due))
       AND j.id = ended.id
), written AS (
    INSERT INTO creche_jobs (
        id, queue_name, type, payload, status, priority, max_attempts, available_at,
        callbacks, origin, created_at, updated_at
    )
    SELECT n.id, n.queue_name, n.type,
           CASE WHEN n.tail IS NULL THEN n.head ELSE n.head || due.result || n.tail END::json,
           'pending', n.priority, n.max_attempts, clock.now, n."then", due.origin, clock.now, clock.now
      FROM due
     CROSS JOIN LATERAL jsonb_to_record(due.callback) AS n (
               id uuid, type text, queue_name text, priority smallint, max_attempts integer,
               head text, tail text, "then" jsonb
           )
     CROSS JOIN (SELECT coalesce(%(now)s::timestamptz, statement_timestamp()) AS now) AS clock
        ON CONFLICT DO NOTHING
    RETURNING queue_name
)
SELECT queue_name
  FROM written
 UNION
SELECT w.watcher
  FROM creche_watches AS w
 WHERE w.job_id = ANY (ARRAY (SELECT ended.id FROM ended))
