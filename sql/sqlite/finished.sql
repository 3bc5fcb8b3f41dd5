-- In which queues there are jobs to prune, of which end, and up to when that is: each queue's own retention, or else what
-- whoever does the upkeep says; and how overdue the oldest is. The recursion hops from queue to queue along the index, and the oldest job of
-- each end is one seek more: what is kept is not walked over, however much it is and for however long. No join with the
-- jobs: after ANALYZE, SQLite reads all of them for a Bloom filter first.
WITH RECURSIVE finished (queue_name) AS (
    SELECT min(queue_name) FROM creche_jobs WHERE completed_at IS NOT NULL
    UNION ALL
    SELECT (
        SELECT min(job.queue_name)
        FROM creche_jobs AS job
        WHERE job.completed_at IS NOT NULL AND job.queue_name > finished.queue_name
    )
    FROM finished
    WHERE finished.queue_name IS NOT NULL
),
kept (status, otherwise) AS (VALUES ('completed', :completed), ('failed', :failed), ('cancelled', :cancelled)),
bound (queue_name, status, finished_before) AS (
    SELECT finished.queue_name, kept.status, :now - coalesce(
        (
            SELECT CASE kept.status
                WHEN 'completed' THEN queue.keep_completed
                WHEN 'failed' THEN queue.keep_failed
                ELSE queue.keep_cancelled
            END
            FROM creche_queues AS queue
            WHERE queue.queue_name = finished.queue_name
        ),
        kept.otherwise
    )
    FROM finished
    CROSS JOIN kept
    WHERE finished.queue_name IS NOT NULL
)
SELECT queue_name, status, finished_before, finished_before - oldest AS overdue
FROM (
    SELECT queue_name, status, finished_before, (
        SELECT min(job.completed_at)
        FROM creche_jobs AS job
        WHERE job.completed_at <= bound.finished_before
            AND job.queue_name = bound.queue_name
            AND job.status = bound.status
            AND (job.result_expires_at IS NULL OR job.result_expires_at <= :now)
    ) AS oldest
    FROM bound
)
WHERE oldest IS NOT NULL
