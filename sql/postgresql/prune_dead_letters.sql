-- Delete dead letters that are as old as failed jobs may grow, the oldest first.
DELETE FROM creche_dead_letters
 WHERE job_id = ANY (ARRAY (
           SELECT job_id
             FROM creche_dead_letters
            WHERE buried_at <= coalesce(%(now)s::timestamptz, now()) - make_interval(secs => %(failed)s)
            ORDER BY buried_at
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ))
