-- Record callbacks with jobs that stand already, in whatever state, beside those that they have. One whose id is
-- recorded there, or written, is left out: the dispatch was sent twice. Answers with the jobs that were given some.
WITH fresh AS MATERIALIZED (
    SELECT j.id, asked.key, coalesce(j.callbacks -> asked.key, '[]') || jsonb_agg(each.callback) AS callbacks
      FROM json_to_recordset(%(joins)s::json) AS n (id uuid, callbacks jsonb)
      JOIN creche_jobs AS j ON j.id = n.id
     CROSS JOIN LATERAL jsonb_each(n.callbacks) AS asked (key, callbacks)
     CROSS JOIN LATERAL jsonb_array_elements(asked.callbacks) AS each (callback)
     WHERE j.id = ANY (%(ids)s::uuid[])
       AND NOT EXISTS (SELECT FROM creche_jobs AS written WHERE written.id = (each.callback ->> 'id')::uuid)
       AND NOT coalesce(
               j.callbacks -> asked.key @> jsonb_build_array(jsonb_build_object('id', each.callback -> 'id')), false
           )
     GROUP BY j.id, asked.key
), merged AS MATERIALIZED (
    SELECT fresh.id, jsonb_object_agg(fresh.key, fresh.callbacks) AS callbacks
      FROM fresh
     GROUP BY fresh.id
)
UPDATE creche_jobs AS j
   SET callbacks = coalesce(j.callbacks, '{}') || merged.callbacks
  FROM merged
 WHERE j.id = ANY (ARRAY (SELECT merged.id FROM merged))
   AND j.id = merged.id
RETURNING j.status, j.queue_name
