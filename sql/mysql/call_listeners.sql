-- Note that these are called by their own names, before find_listeners.sql: the end of a sleep says nothing of its reason,
-- and a worker that is called renews all its leases, which is too much for each dispatch.
UPDATE creche_listeners FORCE INDEX (PRIMARY)
   SET calls = calls + 1
 WHERE queue_name IN (%(names)s)
   AND token NOT IN (%(own)s)
