-- What insert_plain.sql does, for a single job: with plain values instead of arrays the server has a tenth less to do.
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
