-- Make failed, cancelled and scheduled jobs ready now, and say how each job stands. Locked first, in one order, as in
-- cancel.sql. A job whose fingerprint another one holds meanwhile stays as it is; so does the second of two with the
-- same fingerprint. (Should a dispatch take the fingerprint at this very moment, the unique index refuses this
-- statement, and it is run again.)
WITH asked AS MATERIALIZED (
    SELECT j.id, j.status, j.fingerprint, array_position(%(ids)s::uuid[], j.id) AS place
      FROM creche_jobs AS j
     WHERE j.id = ANY (%(ids)s::uuid[])
     ORDER BY j.id
       FOR NO KEY UPDATE
), willing AS MATERIALIZED (
    SELECT DISTINCT ON (coalesce(a.fingerprint, uuid_send(a.id))) a.id
      FROM asked AS a
     WHERE a.status IN ('failed', 'cancelled', 'scheduled')
       AND NOT EXISTS (
               SELECT
                 FROM creche_jobs AS rival
                WHERE rival.fingerprint = a.fingerprint
                  AND rival.single_flight
                  AND rival.id <> a.id
           )
     ORDER BY coalesce(a.fingerprint, uuid_send(a.id)), a.place
), revived AS (
    UPDATE creche_jobs AS j
       SET status = 'pending',
           attempts = CASE WHEN j.status = 'scheduled' THEN j.attempts ELSE 0 END,
           available_at = coalesce(%(now)s::timestamptz, now()),
           token = j.token + 1,
           nonce = 0,
           cancel_requested = false,
           single_flight = j.fingerprint IS NOT NULL,
           updated_at = coalesce(%(now)s::timestamptz, now()),
           completed_at = NULL
     WHERE j.id = ANY (ARRAY (SELECT willing.id FROM willing))
    RETURNING j.id, j.status, j.queue_name
)
SELECT asked.id, coalesce(revived.status, asked.status), revived.queue_name AS woken
  FROM asked
  LEFT JOIN revived ON revived.id = asked.id
