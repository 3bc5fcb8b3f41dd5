-- Hand out nothing of these queues from now on; who is paused already stays so since then.
INSERT INTO creche_queues (queue_name, paused_at)
VALUES %(paused)s
    ON DUPLICATE KEY UPDATE paused_at = COALESCE(creche_queues.paused_at, %(now)s)
