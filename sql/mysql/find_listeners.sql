-- The connections that sleep until there is work in one of these queues. A listener holds a lock of its own name, which
-- ends with its connection: so a row that was left behind, or is another server's, or whose connection's number belongs
-- to somebody else by now, names nobody.
SELECT DISTINCT IS_USED_LOCK(CONCAT('creche_', LOWER(HEX(token)))) AS connection
  FROM creche_listeners
 WHERE queue_name IN (%(queues)s)
   AND token NOT IN (%(own)s)
HAVING connection IS NOT NULL
