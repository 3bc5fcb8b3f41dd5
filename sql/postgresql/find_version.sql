-- The newest migration that was applied.
SELECT max(version)
  FROM creche_migrations
