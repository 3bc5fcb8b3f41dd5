-- Forget a worker that has ended.
DELETE FROM creche_workers
 WHERE name = %(name)s
