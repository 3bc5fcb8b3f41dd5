-- Tell those who dispatch that somebody sleeps here and wants to be woken for these queues. Rows whose sleepers are long
-- gone go; those that a killed process left meanwhile cost a look each.
INSERT INTO creche_listeners (token, queue_name, registered_at)
VALUES %(listeners)s
