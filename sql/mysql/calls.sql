-- How often a listener has been called by which of its names.
SELECT queue_name, calls
  FROM creche_listeners FORCE INDEX (creche_listeners_token)
 WHERE token = %(token)s
   AND calls > 0
