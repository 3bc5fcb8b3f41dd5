-- Forget listeners whose processes were killed: who lives tells of itself every hour.
DELETE FROM creche_listeners
 WHERE registered_at < UTC_TIMESTAMP(6) - INTERVAL 3 HOUR
