-- Who holds these fingerprints.
SELECT id, flight
  FROM creche_jobs FORCE INDEX (creche_jobs_flight)
 WHERE flight IN (%(fingerprints)s)
