-- Push deadlines out, never in; rows that come back are still held. All leases of a worker in one statement, because
-- a renewal that is late ends its job. It writes nothing that an index knows, so the new row version stays on its page.
UPDATE creche_jobs AS j
   SET locked_until = greatest(
           j.locked_until, coalesce(%(now)s::timestamptz, clock_timestamp()) + make_interval(secs => %(seconds)s)
       )
  FROM json_to_recordset(%(leases)s::json) AS l (id uuid, token bigint, nonce bigint)
 WHERE j.id = l.id
   AND j.token = l.token
   AND j.nonce = l.nonce
   AND j.status = 'processing'
RETURNING j.id, j.token, j.nonce, j.cancel_requested
