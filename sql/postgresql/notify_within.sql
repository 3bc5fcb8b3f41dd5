-- Wake the listeners of these queues in every process when the caller's transaction is committed, and not if it never
-- is. In that transaction, because only its owner knows when it ends; the jobs' own ones never notify: see notify.sql.
SELECT pg_notify(%(channel)s, q.name)
  FROM json_array_elements_text(%(queues)s::json) AS q (name)
