-- Forget the workers that were not seen for as long as they had said. There are few, so all are looked at; one that is
-- being announced just now is passed over.
DELETE FROM creche_workers
 WHERE name = ANY (ARRAY (
           SELECT name
             FROM creche_workers
            WHERE expires_at <= coalesce(%(now)s::timestamptz, now())
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ))
