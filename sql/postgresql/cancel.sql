-- Cancel what waits, ask the holder of what runs, and say how each job stands now. The rows are locked first, in one
-- order: what a rival has just changed is then seen as it is, and the answer is the row's, not the snapshot's. A holder
-- is to be woken by the name under which it reserved.
WITH asked AS MATERIALIZED (
    SELECT id, status, locked_by
      FROM creche_jobs
     WHERE id = ANY (%(ids)s::uuid[])
     ORDER BY id
       FOR NO KEY UPDATE
), cancelled AS (
    UPDATE creche_jobs AS j
       SET status = 'cancelled',
           token = j.token + 1,
           nonce = 0,
           single_flight = false,
           updated_at = coalesce(%(now)s::timestamptz, now()),
           completed_at = coalesce(%(now)s::timestamptz, now())
     WHERE j.id = ANY (ARRAY (SELECT asked.id FROM asked WHERE asked.status IN ('pending', 'scheduled')))
    RETURNING j.id, j.status
), requested AS (
    UPDATE creche_jobs AS j
       SET cancel_requested = true,
           updated_at = coalesce(%(now)s::timestamptz, now())
     WHERE j.id = ANY (ARRAY (SELECT asked.id FROM asked WHERE asked.status = 'processing'))
)
SELECT asked.id, coalesce(cancelled.status, asked.status), asked.locked_by AS woken
  FROM asked
  LEFT JOIN cancelled ON cancelled.id = asked.id
