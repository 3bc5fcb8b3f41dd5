-- Add callbacks to those of a job, which standing.sql has locked. If it is over already, follow_up.sql comes next.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET callbacks = JSON_MERGE_PRESERVE(COALESCE(callbacks, '{}'), %(callbacks)s)
 WHERE id = %(id)s
