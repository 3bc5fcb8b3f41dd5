-- Delete finished jobs past their retention: each queue's own, or else what whoever does the upkeep says. The recursion
-- hops from queue to queue along the index, and in each the search goes from its oldest job of each end to the first that
-- is kept: what is kept is not walked over, however much it is and for however long. Rows whose cached result is fresh are
-- passed over within the index.
-- The first word is DELETE: after a WITH, Python's sqlite3 does not say how many rows it was.
DELETE FROM creche_jobs
WHERE rowid IN (
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
            CASE kept.status
                WHEN 'completed' THEN queue.keep_completed
                WHEN 'failed' THEN queue.keep_failed
                ELSE queue.keep_cancelled
            END,
            kept.otherwise
        )
        FROM finished
        CROSS JOIN kept
        LEFT JOIN creche_queues AS queue ON queue.queue_name = finished.queue_name
        WHERE finished.queue_name IS NOT NULL
    )
    SELECT job.rowid
    FROM bound
    CROSS JOIN creche_jobs AS job  -- CROSS: in this order, whatever ANALYZE has found
    WHERE job.completed_at IS NOT NULL
        AND job.queue_name = bound.queue_name
        AND job.status = bound.status
        AND job.completed_at <= bound.finished_before
        AND (job.result_expires_at IS NULL OR job.result_expires_at <= :now)
    LIMIT :limit
)
