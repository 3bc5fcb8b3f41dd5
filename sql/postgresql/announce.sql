-- Note that a worker is there, and until when that holds. When it was first seen stays.
INSERT INTO creche_workers (name, presence, started_at, seen_at, expires_at)
SELECT %(name)s, %(presence)s::json, clock.now, clock.now, clock.now + make_interval(secs => %(ttl)s)
  FROM (SELECT coalesce(%(now)s::timestamptz, now()) AS now) AS clock
    ON CONFLICT (name) DO UPDATE
   SET presence = excluded.presence, seen_at = excluded.seen_at, expires_at = excluded.expires_at
