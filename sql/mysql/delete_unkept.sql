-- Delete the jobs that unkept.sql has locked. In the form for several tables, which alone may name its index: by stale
-- statistics the other one reads the whole table, and locks it; so does MySQL 8 without a second condition.
DELETE j
  FROM creche_jobs AS j FORCE INDEX (PRIMARY)
 WHERE j.id IN (%(ids)s)
   AND j.status = 'processing'
