-- Note in the same transaction that this step was taken.
INSERT INTO creche_migrations (version, name)
VALUES (%(version)s, %(name)s)
