-- Forget workers that have not been seen for as long as they had said. One that announces itself just now is passed over.
-- `presence` says nothing, but is in no index: see overdue.sql.
DELETE w
  FROM (
           SELECT name
             FROM creche_workers FORCE INDEX (creche_workers_expires)
            WHERE expires_at <= %(now)s
              AND presence <> ''
            ORDER BY expires_at
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS gone
 STRAIGHT_JOIN creche_workers AS w FORCE INDEX (PRIMARY) ON w.name = gone.name
