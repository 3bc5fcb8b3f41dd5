-- How many rows of the jobs are alive, and how many are dead, as far as the statistics know.
SELECT n_live_tup, n_dead_tup
  FROM pg_catalog.pg_stat_all_tables
 WHERE relid = to_regclass('creche_jobs')
