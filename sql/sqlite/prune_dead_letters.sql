-- Delete dead letters past the retention of failed jobs: their queue's own, or else what whoever does the upkeep says. From
-- queue to queue, as prune does; a dead letter may be in a queue that has no job any more.
DELETE FROM creche_dead_letters
WHERE rowid IN (
    WITH RECURSIVE buried (queue_name) AS (
        SELECT min(queue_name) FROM creche_dead_letters
        UNION ALL
        SELECT (
            SELECT min(letter.queue_name)
            FROM creche_dead_letters AS letter
            WHERE letter.queue_name > buried.queue_name
        )
        FROM buried
        WHERE buried.queue_name IS NOT NULL
    ),
    bound (queue_name, buried_before) AS (
        SELECT buried.queue_name, :now - coalesce(queue.keep_failed, :failed)
        FROM buried
        LEFT JOIN creche_queues AS queue ON queue.queue_name = buried.queue_name
        WHERE buried.queue_name IS NOT NULL
    )
    SELECT letter.rowid
    FROM bound
    CROSS JOIN creche_dead_letters AS letter
    WHERE letter.queue_name = bound.queue_name AND letter.buried_at <= bound.buried_before
    LIMIT :limit
)
