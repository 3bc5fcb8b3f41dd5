-- Write the callbacks that the ends of some jobs call for, in the transaction that ended them; forget_callbacks comes
-- next. Only those that have any are asked for. An id that is there already was written before.
-- A payload is text around the place where the result stands, or text alone. json_patch leaves a member out that is null:
-- only what failed has an error. Its attempt and its time are the origin's own business.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at, callbacks, origin, created_at, updated_at
)
WITH followed AS (
    SELECT
        called.value AS follow_up,
        job.result,
        json_patch(
            json_object('id', job.id, 'type', job.type, 'queue_name', job.queue_name, 'status', job.status),
            json_object('error', json(iif(
                job.status = 'failed', json_remove(json_extract(job.errors, '$[#-1]'), '$.attempt', '$.failed_at'), NULL
            )))
        ) AS origin
    FROM creche_jobs AS job, json_each(job.callbacks) AS list, json_each(list.value) AS called
    WHERE job.id IN (SELECT value FROM json_each(:ids))
        AND job.completed_at IS NOT NULL
        AND list.key IN (CASE job.status WHEN 'completed' THEN 'success' WHEN 'failed' THEN 'failure' END, 'always')
)
SELECT
    json_extract(follow_up, '$.id'),
    json_extract(follow_up, '$.queue_name'),
    json_extract(follow_up, '$.type'),
    json_extract(follow_up, '$.head')
        || coalesce(coalesce(result, 'null') || json_extract(follow_up, '$.tail'), ''),  -- no tail, no result
    'pending',
    json_extract(follow_up, '$.priority'),
    json_extract(follow_up, '$.max_attempts'),
    :now,
    json_extract(follow_up, '$.then'),
    origin,
    :now,
    :now
FROM followed
WHERE true  -- or the parser would take ON CONFLICT for a join's ON
ON CONFLICT DO NOTHING
RETURNING queue_name
