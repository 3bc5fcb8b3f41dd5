-- Delete jobs whose attempts succeeded, and that are kept for no time, instead of writing them for the last time as
-- settle.sql does. Those that somebody watches, that others follow, whose result is cached or whose queue keeps them are
-- left. What is asked of other tables is one value each, or the optimizer would make joins of it, and read all of them.
-- In the form for several tables, which alone may name its index: by stale statistics the other one reads the whole table,
-- and locks it.
DELETE j
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE %(held)s
   AND status = 'processing'
   AND callbacks IS NULL
   AND result_ttl IS NULL
   AND (SELECT COUNT(*) FROM creche_watches AS w FORCE INDEX (PRIMARY) WHERE w.job_id = j.id) = 0
   AND COALESCE(
           (SELECT q.keep_completed FROM creche_queues AS q FORCE INDEX (PRIMARY) WHERE q.queue_name = j.queue_name), 0
       ) = 0
