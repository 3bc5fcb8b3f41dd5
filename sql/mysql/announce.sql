-- Note that a worker is there, now or still.
INSERT INTO creche_workers (name, presence, started_at, seen_at, expires_at)
VALUES (%(name)s, %(presence)s, %(now)s, %(now)s, %(now)s + INTERVAL %(ttl)s MICROSECOND)
    ON DUPLICATE KEY UPDATE presence = %(presence)s,
                            seen_at = %(now)s,
                            expires_at = %(now)s + INTERVAL %(ttl)s MICROSECOND
