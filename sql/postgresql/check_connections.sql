-- How many connections there may be, and how many there are, in all databases.
SELECT current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
       (SELECT sum(numbackends) FROM pg_catalog.pg_stat_database)::integer
