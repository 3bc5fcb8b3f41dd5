-- Wake the listeners of these queues, in every process. In a transaction of its own and not in that of the jobs
-- (but now and then, see insert_aloud.sql): a transaction that notifies holds a lock of the whole server until its
-- commit is flushed (16 writers became 3 to 5 times slower by it). Nobody needs a wake to survive a crash, so this
-- commit is not flushed at all.
SELECT pg_notify(%(channel)s, q.name)
  FROM (SELECT set_config('synchronous_commit', 'off', true)) AS unflushed
 CROSS JOIN unnest(%(queues)s::text[]) AS q (name)
