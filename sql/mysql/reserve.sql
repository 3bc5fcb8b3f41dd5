-- Hand the claimed jobs to one worker. The lease begins with this statement, later than the caller asked for it, so that
-- the caller's own deadline always comes first. By primary key, whatever the planner thinks of a small table: on another
-- way it would wait for the locks of rows that it doesn't want.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET status = 'processing',
       attempts = attempts + 1,
       token = token + 1,
       nonce = %(nonce)s,
       locked_by = %(worker)s,
       locked_until = %(now)s + INTERVAL %(lease)s MICROSECOND,
       progress = NULL,
       progress_message = NULL,
       updated_at = %(now)s
 WHERE id IN (%(ids)s)
