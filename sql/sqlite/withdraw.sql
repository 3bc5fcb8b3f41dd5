-- Forget a worker.
DELETE FROM creche_workers WHERE name = :name
