-- Who keeps vacuum from removing dead rows of this database, for the longest time: it removes nothing that the oldest
-- transaction might still see. Whose other sessions we may not look into, we see nothing of. A replication slot does not
-- say since when.
SELECT h.who, h.seconds
  FROM (
           SELECT format('session %%s (user %%s, application "%%s", %%s)', pid, usename, application_name, state) AS who,
                  extract(epoch FROM clock_timestamp() - xact_start)::double precision AS seconds
             FROM pg_catalog.pg_stat_activity
            WHERE (datname = current_database() OR datname IS NULL)
              AND pid <> pg_backend_pid()
              AND coalesce(backend_xmin, backend_xid) IS NOT NULL
              AND backend_type <> 'autovacuum worker'
            UNION ALL
           SELECT format('prepared transaction %%L of %%s', gid, owner),
                  extract(epoch FROM clock_timestamp() - prepared)::double precision
             FROM pg_catalog.pg_prepared_xacts
            WHERE database = current_database()
            UNION ALL
           SELECT format('replication slot %%s', slot_name), NULL
             FROM pg_catalog.pg_replication_slots
            WHERE xmin IS NOT NULL
              AND NOT active
       ) AS h
 ORDER BY h.seconds DESC NULLS FIRST
 LIMIT 1
