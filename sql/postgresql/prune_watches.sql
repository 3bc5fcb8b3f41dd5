-- Forget the watches that nobody repeated: their watchers are gone. By the real clock, as watch.sql noted them.
DELETE FROM creche_watches
 WHERE (job_id, watcher) IN (
           SELECT job_id, watcher
             FROM creche_watches
            WHERE since <= now() - make_interval(secs => %(unwatched)s)
            ORDER BY since
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       )
