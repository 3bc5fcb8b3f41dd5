-- Push deadlines out, never in; rows that come back are still held. All leases of a worker in one statement, because
-- a renewal that is late ends its job; what handlers said of their progress goes with it, for that costs no statement.
-- It writes nothing that an index knows, so the new row version stays on its page.
-- ANY (ARRAY ...): to the rows by their ids, also where the statistics are from a moment in which nothing ran; joined
-- alone, the planner would then walk the whole of creche_jobs_held, dead entries and all.
WITH held AS MATERIALIZED (
    SELECT *
      FROM json_to_recordset(%(leases)s::json) AS l (
               id uuid, token bigint, nonce bigint, progress double precision, progress_message text
           )
)
UPDATE creche_jobs AS j
   SET locked_until = greatest(
           j.locked_until, coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s)
       ),
       progress = coalesce(held.progress, j.progress),
       progress_message = CASE WHEN held.progress IS NULL THEN j.progress_message ELSE held.progress_message END
  FROM held
 WHERE j.id = ANY (ARRAY (SELECT held.id FROM held))
   AND j.id = held.id
   AND j.token = held.token
   AND j.nonce = held.nonce
   AND j.status = 'processing'
RETURNING j.id, j.token, j.nonce, j.cancel_requested
