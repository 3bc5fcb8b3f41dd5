-- Take from jobs that have ended the callbacks that this end called for, now that follow_up.sql has written them: none is
-- ever written twice. The others stay, for a job that is made ready again may end in another way.
UPDATE creche_jobs FORCE INDEX (PRIMARY)
   SET callbacks = IF(
           JSON_LENGTH(
               JSON_REMOVE(
                   callbacks, '$.always',
                   CASE status WHEN 'completed' THEN '$.success' WHEN 'failed' THEN '$.failure' ELSE '$.always' END
               )
           ) = 0,
           NULL,
           JSON_REMOVE(
               callbacks, '$.always',
               CASE status WHEN 'completed' THEN '$.success' WHEN 'failed' THEN '$.failure' ELSE '$.always' END
           )
       )
 WHERE id IN (%(ids)s)
   AND completed_at IS NOT NULL
   AND callbacks IS NOT NULL
