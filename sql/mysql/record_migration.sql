-- Note that this step was taken.
INSERT INTO creche_migrations (version, name, applied_at)
VALUES (%(version)s, %(name)s, UTC_TIMESTAMP(6))
    ON DUPLICATE KEY UPDATE name = creche_migrations.name
