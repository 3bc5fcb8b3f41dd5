-- Which of these tables search_path finds, and which privileges on them are missing.
SELECT t.name, to_regclass(t.name) IS NOT NULL,
       ARRAY (
           SELECT p.privilege
             FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
            WHERE NOT has_table_privilege(to_regclass(t.name), p.privilege)
       )
  FROM unnest(%(tables)s::text[]) AS t (name)
