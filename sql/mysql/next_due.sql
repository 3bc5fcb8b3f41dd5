-- In how many microseconds the next job of each queue is due that has any scheduled; less than none if it is overdue.
-- The index is hopped through from one queue to the next: one probe per queue, however many jobs wait.
-- It is the one statement that relies on statistics: where they say that the table is empty, MySQL reads the index to its
-- end, and no hint keeps it from that.
SELECT due_queue, TIMESTAMPDIFF(MICROSECOND, %(now)s, MIN(available_at)) AS due_in
  FROM creche_jobs FORCE INDEX (creche_jobs_due)
 WHERE due_queue IS NOT NULL
 GROUP BY due_queue
