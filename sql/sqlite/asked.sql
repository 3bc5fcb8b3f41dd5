-- Who is asked to end which attempt, in this process or another. The index has nothing else.
SELECT locked_by, id, token
FROM creche_jobs
WHERE cancel_requested = 1
    AND locked_by IS NOT NULL
