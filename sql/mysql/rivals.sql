-- Who holds these fingerprints. `single_flight` says nothing new, but is in no index: see overdue.sql.
SELECT id, flight
  FROM creche_jobs FORCE INDEX (creche_jobs_flight)
 WHERE flight IN (%(fingerprints)s)
   AND single_flight
