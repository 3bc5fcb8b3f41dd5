-- Who is to be woken, now that these jobs are over: names in hexadecimal. `since` says nothing new, but is no part of the
-- key: of the key alone MySQL reads all that there is, where its statistics say that there is nothing.
SELECT HEX(watcher)
  FROM creche_watches FORCE INDEX (PRIMARY)
 WHERE job_id IN (%(ids)s)
   AND since > '1970-01-01'
