-- In how many microseconds the first lease can be taken back, for whoever does the upkeep: it looks again at that moment,
-- so that the jobs of a worker that died need not wait for the next round.
SELECT TIMESTAMPDIFF(MICROSECOND, %(run_out)s, MIN(locked_until))
  FROM creche_jobs
