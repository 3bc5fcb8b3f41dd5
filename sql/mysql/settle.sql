-- End attempts: results, retries and releases of a whole batch in one statement, fenced by the whole lease. What follows
-- from which event is decided in creche._lifecycle; only what the row itself knows is decided here: whether a
-- cancellation was asked for, and by the database's clock whether the job is due already.
-- Callbacks are written in the transaction that ends their job: where none comes next, jobs that have some are left out
-- (`followed`). Asked here, below the row's lock: a dispatch may have recorded one while we waited for it.
-- Nothing that is assigned is read by another assignment: MySQL promises no order among them.
UPDATE (
           SELECT s.*, IF(
                      s.due,
                      COALESCE(s.available_at, %(now)s + INTERVAL s.delay MICROSECOND),
                      NULL
                  ) AS due_at
             FROM JSON_TABLE(%(settlements)s, '$[*]' COLUMNS (
                      id           CHAR(32)    PATH '$.id',
                      token        BIGINT      PATH '$.token',
                      nonce        BIGINT      PATH '$.nonce',
                      status       VARCHAR(16) CHARACTER SET utf8mb4 PATH '$.status',
                      goes_on      BOOLEAN     PATH '$.goes_on',
                      gives_back   BOOLEAN     PATH '$.gives_back',
                      due          BOOLEAN     PATH '$.due',
                      delay        BIGINT      PATH '$.delay',
                      available_at DATETIME(6) PATH '$.available_at',
                      result       LONGTEXT CHARACTER SET utf8mb4    PATH '$.result',
                      error        LONGTEXT CHARACTER SET utf8mb4    PATH '$.error',
                      last_error   TEXT CHARACTER SET utf8mb4        PATH '$.last_error'
                  )) AS s
       ) AS s
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = UNHEX(s.id)
   SET j.status = CASE
           WHEN NOT s.goes_on THEN s.status
           WHEN j.cancel_requested THEN 'cancelled'
           WHEN s.due_at <= %(now)s THEN 'pending'
           ELSE s.status
       END,
       j.attempts = j.attempts - s.gives_back,
       j.available_at = IF(s.goes_on AND NOT j.cancel_requested, COALESCE(s.due_at, j.available_at), j.available_at),
       j.locked_until = NULL,
       j.locked_by = NULL,
       j.single_flight = j.single_flight AND IF(
           s.goes_on, NOT j.cancel_requested, s.status = 'completed' AND j.result_ttl IS NOT NULL
       ),
       j.result = s.result,
       j.result_expires_at = IF(s.status = 'completed', %(now)s + INTERVAL j.result_ttl MICROSECOND, NULL),
       j.errors = IF(
           s.error IS NULL,
           j.errors,
           JSON_MERGE_PRESERVE(
               IF(JSON_LENGTH(j.errors) >= %(kept)s, JSON_REMOVE(j.errors, '$[0]'), j.errors),
               JSON_MERGE_PRESERVE(
                   JSON_OBJECT('attempt', j.attempts, 'failed_at', DATE_FORMAT(%(now)s, '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ')),
                   s.error
               )
           )
       ),
       j.last_error = COALESCE(s.last_error, j.last_error),
       j.updated_at = %(now)s,
       j.completed_at = IF(NOT s.goes_on OR j.cancel_requested, %(now)s, NULL)
 WHERE j.token = s.token
   AND j.nonce = s.nonce
   AND j.status = 'processing'
   AND (j.callbacks IS NULL OR %(followed)s)
