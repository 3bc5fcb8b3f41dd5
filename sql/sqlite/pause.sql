-- Hand out no more jobs of some queues. One that is paused already stays so since then.
INSERT INTO creche_queues (queue_name, paused_at)
SELECT value, :now
FROM json_each(:queues)
WHERE true  -- or the parser would take ON CONFLICT for a join's ON
ON CONFLICT (queue_name) DO UPDATE SET paused_at = excluded.paused_at WHERE creche_queues.paused_at IS NULL
