-- Make the jobs of one queue ready whose time has come: pending ones are due by definition, so that claim.sql never has
-- to walk over those that are not. `status` says nothing new, but is in no index: see overdue.sql.
UPDATE (
           SELECT id
             FROM creche_jobs FORCE INDEX (creche_jobs_due)
            WHERE due_queue = %(queue)s
              AND status = 'scheduled'
              AND available_at <= %(now)s
            ORDER BY available_at
            LIMIT %(limit)s
              FOR UPDATE SKIP LOCKED
       ) AS due
 STRAIGHT_JOIN creche_jobs AS j FORCE INDEX (PRIMARY) ON j.id = due.id
   SET j.status = 'pending',
       j.updated_at = %(now)s
