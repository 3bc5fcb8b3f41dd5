-- Delete those of these jobs that are over, and say how each stood; unbury.sql follows. Locked first, in one order,
-- as in cancel.sql, so that the answer is the row's. One that waits and is left alone may have been passed over by a
-- reserve meanwhile: its queue is to be woken.
WITH asked AS MATERIALIZED (
    SELECT id, status, queue_name
      FROM creche_jobs
     WHERE id = ANY (%(ids)s::uuid[])
     ORDER BY id
       FOR UPDATE
), over AS MATERIALIZED (
    SELECT asked.id
      FROM asked
     WHERE asked.status IN ('completed', 'failed', 'cancelled')
), deleted AS (
    DELETE FROM creche_jobs
     WHERE id = ANY (ARRAY (SELECT over.id FROM over))
), unwatched AS (
    DELETE FROM creche_watches
     WHERE job_id = ANY (ARRAY (SELECT over.id FROM over))
)
SELECT id, status, CASE WHEN status = 'pending' THEN queue_name END AS woken
  FROM asked
