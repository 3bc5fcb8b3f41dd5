-- Choose what is asked of the jobs that complete.sql has ended, by how many those are: nearly always all of them, and then
-- only who watches them; or which ones. In the same round trip, for a worker whose event loop is blocked meanwhile must
-- not keep their end from being committed.
SET @creche_settled = IF(ROW_COUNT() = %(wanted)s, %(watched)s, %(settled)s)
