-- The indexes that stand beside the queue's tables, and whether they are used: a CREATE INDEX CONCURRENTLY that failed
-- leaves one behind that is not.
SELECT c.relname::text, i.indisvalid
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
 WHERE c.relnamespace = (SELECT m.relnamespace FROM pg_catalog.pg_class AS m WHERE m.oid = to_regclass('creche_migrations'))
