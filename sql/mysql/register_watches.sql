-- Note who is to be woken when these jobs are over. Whoever waits asks once a second, so what is noted already, and not
-- long ago, is left as it is: then nothing is written, and nothing locked.
INSERT INTO creche_watches (job_id, watcher, since)
SELECT j.id, %(watcher)s, UTC_TIMESTAMP(6)
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
  LEFT JOIN creche_watches AS w FORCE INDEX (PRIMARY) ON w.job_id = j.id AND w.watcher = %(watcher)s
 WHERE j.id IN (%(ids)s)
   AND j.completed_at IS NULL
   AND (w.job_id IS NULL OR w.since <= UTC_TIMESTAMP(6) - INTERVAL %(fresh)s MICROSECOND)
    ON DUPLICATE KEY UPDATE since = UTC_TIMESTAMP(6)
