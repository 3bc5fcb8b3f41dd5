-- What our statements really run at: a database or a role may have defaults of its own.
SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')::boolean, pg_is_in_recovery()
