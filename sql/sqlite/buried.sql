-- In which queues there are dead letters past the retention of failed jobs, and up to when that is. As in finished.sql; a
-- dead letter may be in a queue that has no job any more.
WITH RECURSIVE buried (queue_name) AS (
    SELECT min(queue_name) FROM creche_dead_letters
    UNION ALL
    SELECT (SELECT min(letter.queue_name) FROM creche_dead_letters AS letter WHERE letter.queue_name > buried.queue_name)
    FROM buried
    WHERE buried.queue_name IS NOT NULL
),
bound (queue_name, buried_before) AS (
    SELECT buried.queue_name, :now - coalesce(
        (SELECT queue.keep_failed FROM creche_queues AS queue WHERE queue.queue_name = buried.queue_name),
        :failed
    )
    FROM buried
    WHERE buried.queue_name IS NOT NULL
)
SELECT queue_name, buried_before, buried_before - oldest AS overdue
FROM (
    SELECT queue_name, buried_before, (
        SELECT min(letter.buried_at) FROM creche_dead_letters AS letter WHERE letter.queue_name = bound.queue_name
    ) AS oldest
    FROM bound
)
WHERE oldest <= buried_before
