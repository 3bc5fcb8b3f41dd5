-- Forget the watches that nobody repeated: their watchers are gone. By the real clock, as watch.sql noted them, and by
-- their places in the table, for the key has two columns; they are locked, so they stay there.
DELETE FROM creche_watches
 WHERE ctid = ANY (ARRAY (
           SELECT ctid
             FROM creche_watches
            WHERE since <= now() - make_interval(secs => %(unwatched)s)
            ORDER BY since
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ))
