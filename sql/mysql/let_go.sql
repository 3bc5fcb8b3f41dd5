-- Let go of the fingerprints of results that are stale by now, or that a dispatch refused to be answered with, for the
-- insert that comes next in the same transaction. Never of an active job's. By id, as find_standing.sql has seen them:
-- to look for a fingerprint that nobody has would lock the gap where it would stand, in a transaction that isn't ours.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET single_flight = FALSE
 WHERE id IN (%(ids)s)
   AND result_expires_at IS NOT NULL
