-- The workers that are there, each with the jobs that it holds: one row for each job, or one without.
SELECT
    worker.name, worker.presence, worker.started_at, worker.seen_at,
    job.id, job.queue_name, job.type, job.attempts, job.locked_until, job.progress, job.progress_message
FROM creche_workers AS worker
LEFT JOIN creche_jobs AS job ON job.locked_by = worker.name AND job.status = 'processing'
WHERE worker.expires_at > :now
ORDER BY worker.name, job.id
