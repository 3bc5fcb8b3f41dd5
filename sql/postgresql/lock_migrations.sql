-- One migration at a time in this database. The lock is the transaction's, so that it ends with it whatever happens;
-- a session's lock would be left behind in a transaction pooler. The number is "creche" in ASCII.
SELECT pg_advisory_xact_lock(109342978435173)
