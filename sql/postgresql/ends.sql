-- How jobs ended, for whoever waits for many of them: nothing but the result, and the last error of those that failed.
SELECT id, status,
       CASE WHEN completed_at IS NOT NULL THEN result END,
       CASE WHEN status = 'failed' THEN jsonb_path_query_array(errors, '$[last]') END
  FROM creche_jobs
 WHERE id = ANY (%(ids)s::uuid[])
