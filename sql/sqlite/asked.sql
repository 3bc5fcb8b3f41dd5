-- Who is asked to end which attempt, in this process or another. The index has nothing else.
SELECT locked_by AS holder, id, token
FROM creche_jobs
WHERE status = 'processing'
    AND cancel_requested = 1
