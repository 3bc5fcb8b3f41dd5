-- Keep what is to run when a job is over. The adapter has read what was there, under the same write lock.
UPDATE creche_jobs SET callbacks = :callbacks WHERE id = :id
