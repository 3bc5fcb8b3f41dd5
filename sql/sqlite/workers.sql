-- The workers that are there.
SELECT name, presence, started_at, seen_at
FROM creche_workers
WHERE expires_at > :now
ORDER BY name
