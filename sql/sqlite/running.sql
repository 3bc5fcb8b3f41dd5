-- All jobs that run, with who holds them: few, and hardly any that no worker holds who is there. No join with the workers:
-- after ANALYZE, SQLite reads all jobs for a Bloom filter first.
SELECT locked_by, id, queue_name, type, attempts, locked_until, progress, progress_message
FROM creche_jobs
WHERE status = 'processing'
