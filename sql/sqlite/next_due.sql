-- When the earliest scheduled job of each queue is due: of those named that are not paused, or of all that have any (what
-- is paused is promoted all the same). The recursion hops from queue to queue along the index, one seek each, however
-- many jobs wait in them.
WITH RECURSIVE waiting (queue_name) AS (
    SELECT min(queue_name) FROM creche_jobs WHERE status = 'scheduled' AND :queues IS NULL
    UNION ALL
    SELECT (
        SELECT min(job.queue_name)
        FROM creche_jobs AS job
        WHERE job.status = 'scheduled' AND job.queue_name > waiting.queue_name
    )
    FROM waiting
    WHERE waiting.queue_name IS NOT NULL
),
asked (queue_name) AS (
    SELECT queue_name FROM waiting WHERE queue_name IS NOT NULL
    UNION ALL
    SELECT value
    FROM json_each(:queues)
    WHERE NOT EXISTS (
        SELECT 1
        FROM creche_queues AS queue
        WHERE queue.queue_name = json_each.value AND queue.paused_at IS NOT NULL
    )
)
SELECT queue_name, (
    SELECT min(job.available_at)
    FROM creche_jobs AS job
    WHERE job.status = 'scheduled' AND job.queue_name = asked.queue_name
) AS due_at
FROM asked
