-- The newest migration that was applied.
SELECT MAX(version)
  FROM creche_migrations
