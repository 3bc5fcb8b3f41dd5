-- The end of insert.sql for jobs in whose place another may stand: an id sent twice, an idempotency key and a fingerprint
-- in flight are all the same answer, nothing is written. Not INSERT IGNORE, which would hide every other error too. A
-- rival that has inserted but not committed is waited for, and whoever stands there is locked until find_standing.sql
-- has seen it.
ON DUPLICATE KEY UPDATE id = creche_jobs.id
