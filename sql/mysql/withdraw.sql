-- Forget a worker. In the form for several tables, as delete_dead_letters.sql is.
DELETE w
  FROM creche_workers AS w FORCE INDEX (PRIMARY)
 WHERE w.name = %(name)s
