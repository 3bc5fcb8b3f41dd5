-- A job that gets another go, or is gone, is dead no longer. A statement of its own, after retry.sql or delete.sql in the
-- same transaction: whoever buried a job may have been committed while that one waited for its row, and only a new
-- snapshot sees the dead letter.
DELETE FROM creche_dead_letters AS d
 WHERE d.job_id = ANY (%(ids)s::uuid[])
   AND NOT EXISTS (
           SELECT
             FROM creche_jobs AS j
            WHERE j.id = d.job_id
              AND j.status = 'failed'
       )
