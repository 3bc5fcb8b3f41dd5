-- Forget a listener that ends.
DELETE FROM creche_listeners
 WHERE token = %(token)s
