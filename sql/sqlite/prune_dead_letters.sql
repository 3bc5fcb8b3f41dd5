-- Delete dead letters of one queue past the retention of failed jobs, the oldest first.
DELETE FROM creche_dead_letters
WHERE rowid IN (
    SELECT rowid
    FROM creche_dead_letters
    WHERE queue_name = :queue_name
        AND buried_at <= :buried_before
    ORDER BY buried_at
    LIMIT :limit
)
