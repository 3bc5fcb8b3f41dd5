-- Which of these leases are held, and whether their holder is asked to stop.
SELECT id, token, nonce, cancel_requested
  FROM creche_jobs FORCE INDEX (PRIMARY)
 WHERE %(held)s
   AND status = 'processing'
