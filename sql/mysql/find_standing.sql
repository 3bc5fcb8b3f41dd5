-- The rows that stand in the place of each job that was to be inserted, the strongest claim first: the same id (it was
-- inserted, now or before), then the same idempotency key, then the same fingerprint in flight. There may be more than
-- one: the row with the key may be a later job of the same batch. `soon`: the queue's listeners are to be woken. `stale`
-- says of a row that has the fingerprint whether it is a result, and if so, whether it is past its time. `ids`: of the
-- callbacks that a row has, for whoever has just inserted one, or lost to somebody who inserted the same.
-- STRAIGHT_JOIN and FORCE INDEX: to the rows by what they are asked for, whatever the planner believes of JSON_TABLE.
-- Results as bytes: what a caller's own session does to text is its own affair. And where such a session must see what its
-- snapshot doesn't, the rows are locked.
WITH asked AS (
    SELECT place, UNHEX(id) AS id, CAST(queue_name AS BINARY) AS queue_name,
           CAST(idempotency_key AS BINARY) AS idempotency_key, UNHEX(fingerprint) AS fingerprint
      FROM JSON_TABLE(%(jobs)s, '$[*]' COLUMNS (
               place           INT          PATH '$.place',
               id              CHAR(32)     PATH '$.id',
               queue_name      VARCHAR(128) CHARACTER SET utf8mb4 PATH '$.queue_name',
               idempotency_key VARCHAR(255) CHARACTER SET utf8mb4 PATH '$.idempotency_key',
               fingerprint     CHAR(64)     PATH '$.fingerprint'
           )) AS sent
)
(
    SELECT place, 1 AS claim, j.id, j.status, j.fingerprint, CAST(j.result AS BINARY) AS result,
           j.available_at < %(now)s + INTERVAL %(horizon)s MICROSECOND AS soon, NULL AS stale,
           JSON_EXTRACT(j.callbacks, '$.*[*].id') AS ids
      FROM asked
     STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = asked.id
     %(locked)s
)
 UNION ALL
(
    SELECT place, 2, j.id, j.status, j.fingerprint, CAST(j.result AS BINARY), FALSE, NULL, NULL
      FROM asked
     STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (creche_jobs_key)
        ON j.queue_name = asked.queue_name AND j.idempotency_key = asked.idempotency_key
     %(locked)s
)
 UNION ALL
(
    SELECT place, 3, j.id, j.status, j.fingerprint, CAST(j.result AS BINARY), FALSE, j.result_expires_at <= %(now)s, NULL
      FROM asked
     STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (creche_jobs_flight) ON j.flight = asked.fingerprint
     %(locked)s
)
 ORDER BY place, claim
