-- One page of jobs, newest first: ids are drawn in time's order, so the primary key is the timeline, and the last id
-- of a page is where the next one begins.
SELECT id, queue_name, type, payload, status, priority, attempts, max_attempts, available_at, locked_until, locked_by,
       errors, idempotency_key, fingerprint, cancel_requested, created_at, updated_at, completed_at, result,
       result_expires_at, progress, progress_message, origin
  FROM creche_jobs
 WHERE (%(before)s::uuid IS NULL OR id < %(before)s::uuid)
   AND (%(queues)s::text[] IS NULL OR queue_name = ANY (%(queues)s::text[]))
   AND (%(types)s::text[] IS NULL OR type = ANY (%(types)s::text[]))
   AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s::text[]))
 ORDER BY id DESC
 LIMIT %(limit)s
