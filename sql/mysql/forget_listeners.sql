-- Forget a listener that ends, and what killed processes left behind.
DELETE FROM creche_listeners
 WHERE token = %(token)s
    OR registered_at < %(now)s - INTERVAL 7 DAY
