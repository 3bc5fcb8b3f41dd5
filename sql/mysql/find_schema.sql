-- Whether the queue's tables are in this connection's database.
SELECT COUNT(*)
  FROM information_schema.tables
 WHERE table_schema = DATABASE()
   AND table_name = 'creche_migrations'
