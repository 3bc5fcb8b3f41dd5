-- What insert_one.sql does, and wake the listeners of the queue as it commits: the first job after a silence is begun half
-- a millisecond sooner than by a wake that is sent after it. The notification holds a lock of the whole server until the
-- commit is flushed (see notify.sql), so it is sent rarely. A job that was there before wakes nobody.
INSERT INTO creche_jobs (
    id, queue_name, type, payload, status, priority, max_attempts, available_at, created_at, updated_at
)
VALUES (
    %(id)s, %(queue_name)s, %(type)s, %(payload)s::json, 'pending', %(priority)s, %(max_attempts)s,
    coalesce(%(now)s::timestamptz, statement_timestamp()),
    coalesce(%(now)s::timestamptz, statement_timestamp()),
    coalesce(%(now)s::timestamptz, statement_timestamp())
)
    ON CONFLICT DO NOTHING
RETURNING pg_notify(%(channel)s, queue_name)
