-- The workers that are there.
SELECT presence, started_at, seen_at
  FROM creche_workers
 WHERE expires_at > %(now)s
 ORDER BY name
