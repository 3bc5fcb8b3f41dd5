-- Make ready what is due in one queue, the longest due first. A queue at a time, since the index begins with it: the
-- adapter goes from the queue that has waited longest to the next until its limit is filled.
UPDATE creche_jobs
SET status = 'pending',
    updated_at = :now
WHERE rowid IN (
    SELECT rowid
    FROM creche_jobs
    WHERE status = 'scheduled'
        AND queue_name = :queue_name
        AND available_at <= :now
    ORDER BY available_at
    LIMIT :limit
)
