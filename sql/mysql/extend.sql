-- Push deadlines out, never in, and note how far those jobs have come whose handlers said so. All leases of a worker in one statement, because a renewal that is late ends its job.
-- STRAIGHT_JOIN: in the order of the document, which is sorted, so that two batches can't lock each other out.
UPDATE JSON_TABLE(%(leases)s, '$[*]' COLUMNS (
           id       CHAR(32) PATH '$.id',
           token    BIGINT   PATH '$.token',
           nonce    BIGINT   PATH '$.nonce',
           progress DOUBLE   PATH '$.progress',
           message  TEXT CHARACTER SET utf8mb4 PATH '$.message'
       )) AS l
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = UNHEX(l.id)
   SET j.locked_until = GREATEST(j.locked_until, %(now)s + INTERVAL %(seconds)s MICROSECOND),
       j.progress = COALESCE(l.progress, j.progress),
       j.progress_message = IF(l.progress IS NULL, j.progress_message, l.message)
 WHERE j.token = l.token
   AND j.nonce = l.nonce
   AND j.status = 'processing'
