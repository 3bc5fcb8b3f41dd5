-- Note that a worker is there. Since when it is, stays as it was said first.
INSERT INTO creche_workers (name, presence, started_at, seen_at, expires_at)
VALUES (:name, :presence, :now, :now, :now + :ttl)
ON CONFLICT (name) DO UPDATE
SET presence = excluded.presence,
    seen_at = excluded.seen_at,
    expires_at = excluded.expires_at
