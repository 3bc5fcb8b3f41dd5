-- Delete those of some jobs that are over.
DELETE FROM creche_jobs
WHERE id IN (SELECT value FROM json_each(:ids))
    AND +completed_at IS NOT NULL  -- + keeps ANALYZE from beginning with all that are over
RETURNING id
