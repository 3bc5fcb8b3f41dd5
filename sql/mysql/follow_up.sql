-- Write the jobs that follow those which have just ended: the callbacks that each one's end calls for, ready now. In the
-- transaction that ended them, so that an end and what follows it are one thing. What they hold is taken apart here,
-- joined to its own row, for only the row knows how it ended and with what result.
-- Of an end that is over nothing is left that it calls for, see forget_callbacks.sql; an id that is known writes nothing.
-- A result goes into the payload as the text that it is. `origin` is what creche.storage._rows.origin_json writes, with
-- the newest element of `errors`, which has two fields more than a failure.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at, errors, callbacks, origin, created_at,
    updated_at
)
SELECT UNHEX(REPLACE(c.id, '-', '')), c.queue_name, c.type,
       IF(c.tail IS NULL, c.head, CONCAT(c.head, COALESCE(j.result, 'null'), c.tail)),
       'pending', c.priority, c.max_attempts, %(now)s, '[]', c.follows,
       JSON_MERGE_PRESERVE(
           JSON_OBJECT(
               'id', INSERT(INSERT(INSERT(INSERT(LOWER(HEX(j.id)), 9, 0, '-'), 14, 0, '-'), 19, 0, '-'), 24, 0, '-'),
               'type', CONVERT(j.type USING utf8mb4), 'queue_name', CONVERT(j.queue_name USING utf8mb4),
               'status', CONVERT(j.status USING utf8mb4)
           ),
           IF(
               j.status = 'failed' AND JSON_LENGTH(j.errors) > 0,
               JSON_OBJECT(
                   'error',
                   JSON_REMOVE(
                       JSON_EXTRACT(j.errors, CONCAT('$[', GREATEST(JSON_LENGTH(j.errors) - 1, 0), ']')),
                       '$.attempt', '$.failed_at'
                   )
               ),
               '{}'
           )
       ),
       %(now)s, %(now)s
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 STRAIGHT_JOIN JSON_TABLE(
           CASE j.status
               WHEN 'completed' THEN JSON_EXTRACT(j.callbacks, '$.success[*]', '$.always[*]')
               WHEN 'failed' THEN JSON_EXTRACT(j.callbacks, '$.failure[*]', '$.always[*]')
               WHEN 'cancelled' THEN JSON_EXTRACT(j.callbacks, '$.always[*]')
           END,
           '$[*]' COLUMNS (
               id           VARCHAR(36)  CHARACTER SET utf8mb4 PATH '$.id',
               queue_name   VARCHAR(128) CHARACTER SET utf8mb4 PATH '$.queue_name',
               type         VARCHAR(128) CHARACTER SET utf8mb4 PATH '$.type',
               priority     SMALLINT     PATH '$.priority',
               max_attempts INT          PATH '$.max_attempts',
               head         LONGTEXT     CHARACTER SET utf8mb4 PATH '$.head',
               tail         LONGTEXT     CHARACTER SET utf8mb4 PATH '$.tail',
               follows      JSON         PATH '$.then'
           )
       ) AS c
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NOT NULL
   AND j.callbacks IS NOT NULL
    ON DUPLICATE KEY UPDATE id = creche_jobs.id
