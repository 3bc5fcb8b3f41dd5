-- In which schema search_path finds the queue's tables; no row if they are not there. Everybody who finds the same
-- tables thus agrees on the channel's name, whatever else is in their search_path.
SELECT n.nspname::text
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = to_regclass('creche_migrations')
