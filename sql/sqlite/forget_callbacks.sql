-- Take out what follow_up has written. What the end did not call for stays: a job that is made ready again may end in
-- another way.
UPDATE creche_jobs
SET callbacks = nullif(
        json_remove(callbacks, '$.always', CASE status
            WHEN 'completed' THEN '$.success'
            WHEN 'failed' THEN '$.failure'
            ELSE '$.always'
        END),
        '{}'
    )
WHERE id IN (SELECT value FROM json_each(:ids))
    AND callbacks IS NOT NULL
    AND completed_at IS NOT NULL
