-- One migration at a time in this database. Tables can't be made in a transaction here, so the lock is the session's;
-- it ends with the connection, whatever happens.
SELECT GET_LOCK(CONCAT('creche_migrate_', LEFT(SHA2(DATABASE(), 256), 40)), %(seconds)s)
