-- Tell those who dispatch that somebody sleeps here and wants to be woken for these queues, now or still.
INSERT INTO creche_listeners (token, queue_name, registered_at)
VALUES %(listeners)s
    ON DUPLICATE KEY UPDATE registered_at = UTC_TIMESTAMP(6)
