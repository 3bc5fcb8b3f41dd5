-- Delete finished jobs of one queue past their retention, the oldest first, one status at a time: each has its own
-- retention, and the long-kept failed ones must not stand before the completed ones. Rows whose cached result is fresh are
-- passed over within the index.
DELETE FROM creche_jobs
WHERE rowid IN (
    SELECT rowid
    FROM creche_jobs
    WHERE queue_name = :queue_name
        AND status = :status
        AND completed_at <= :finished_before
        AND (result_expires_at IS NULL OR result_expires_at <= :now)
    ORDER BY completed_at
    LIMIT :limit
)
