-- The queue's tables and indexes. Nothing here names a schema: they stand wherever search_path says.

CREATE TABLE creche_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Payloads and results are `json`, not `jsonb`: json keeps the very bytes that were dispatched, jsonb changes numbers,
-- the order of keys and repeated keys without a word. Names are compared byte for byte, hence COLLATE "C".
CREATE TABLE creche_jobs (
    id                uuid             PRIMARY KEY,
    queue_name        text COLLATE "C" NOT NULL,
    type              text COLLATE "C" NOT NULL,
    payload           json             NOT NULL,
    status            text COLLATE "C" NOT NULL
        CHECK (status IN ('pending', 'scheduled', 'processing', 'completed', 'failed', 'cancelled')),
    priority          smallint         NOT NULL,
    attempts          integer          NOT NULL DEFAULT 0,
    max_attempts      integer          NOT NULL,
    available_at      timestamptz      NOT NULL,
    locked_until      timestamptz,
    locked_by         text,
    -- The fence: token rises with every reservation and every seizure, nonce is the reserver's 64 random bits.
    token             bigint           NOT NULL DEFAULT 0,
    nonce             bigint           NOT NULL DEFAULT 0,
    cancel_requested  boolean          NOT NULL DEFAULT false,
    idempotency_key   text COLLATE "C",
    fingerprint       bytea,
    -- Whether this row is what a dispatch with the same fingerprint joins. A column, because uniqueness must end by
    -- the clock when a cached result grows stale, and no index can ask a clock.
    single_flight     boolean          NOT NULL DEFAULT false,
    result            json,
    result_ttl        double precision,
    result_expires_at timestamptz,
    -- [{attempt, failed_at, type, message, traceback}], oldest first; last_error is its newest, for people.
    errors            jsonb            NOT NULL DEFAULT '[]',
    last_error        text,
    -- What is written when this job is over: lists of {id, type, queue_name, priority, max_attempts, head, tail, then} by
    -- the end that calls for them. What an end has called for is gone from it, so nothing is ever written twice. jsonb,
    -- for it is taken apart and put together; payloads stand in it as strings, which jsonb leaves as they are.
    callbacks         jsonb,
    -- The job that this one follows, if it was a callback, as it had ended: {id, type, queue_name, status, error}.
    origin            json,
    progress          double precision,
    progress_message  text,
    created_at        timestamptz      NOT NULL,
    updated_at        timestamptz      NOT NULL,
    completed_at      timestamptz
) WITH (
    -- A job's row is written three times: waiting, running, over. With half of each page left free the next version
    -- stays beside the last: a fifth less WAL than at 85 and a smaller table in the end (measured: 751 and 920 bytes
    -- per job, 11.1 and 13.6 MB for 20,000), and renewals, which touch no index, stay HOT.
    fillfactor = 50,
    -- Each job leaves two dead rows behind, and dead entries at the head of creche_jobs_ready are walked over by every
    -- reserve. So vacuum by the size of the stream, not of the table, and without the pauses meant for large tables.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_analyze_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- Exactly the order of reserve.sql, and nothing but what can be reserved: the cost of reserving doesn't know how many
-- jobs are delayed, done, or of a lower priority.
CREATE INDEX creche_jobs_ready ON creche_jobs (queue_name, priority DESC, available_at, id)
    WHERE status = 'pending';

-- The next one due, per queue.
CREATE INDEX creche_jobs_due ON creche_jobs (queue_name, available_at)
    WHERE status = 'scheduled';

-- What may have to be recovered. Not by locked_until: a renewal would then have to write an index entry, and this
-- index is never larger than the number of jobs that run at the moment.
CREATE INDEX creche_jobs_held ON creche_jobs (id)
    WHERE status = 'processing';

-- What may be pruned, the oldest first, queue by queue, because queues may have retentions of their own: what one keeps
-- for a year is a range apart. The last column lets the index itself pass over results that are still fresh.
CREATE INDEX creche_jobs_finished
    ON creche_jobs (queue_name, status, completed_at, coalesce(result_expires_at, completed_at))
    WHERE completed_at IS NOT NULL;

-- Single flight, and the caller's own names: uniqueness is the database's business, in the insert itself.
CREATE UNIQUE INDEX creche_jobs_flight ON creche_jobs (fingerprint)
    WHERE single_flight;
CREATE UNIQUE INDEX creche_jobs_key ON creche_jobs (queue_name, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE creche_dead_letters (
    job_id       uuid             PRIMARY KEY,
    queue_name   text COLLATE "C" NOT NULL,
    type         text COLLATE "C" NOT NULL,
    payload      json             NOT NULL,
    priority     smallint         NOT NULL,
    attempts     integer          NOT NULL,
    max_attempts integer          NOT NULL,
    created_at   timestamptz      NOT NULL,
    buried_at    timestamptz      NOT NULL,
    errors       jsonb            NOT NULL
);

CREATE INDEX creche_dead_letters_buried ON creche_dead_letters (queue_name, buried_at);

-- Who is to be woken when a job is over. Hints: a row that is lost costs somebody a second, and none is kept for long.
CREATE TABLE creche_watches (
    job_id  uuid             NOT NULL,
    watcher text COLLATE "C" NOT NULL,
    since   timestamptz      NOT NULL,
    PRIMARY KEY (job_id, watcher)
);

CREATE INDEX creche_watches_since ON creche_watches (since);

-- What operators have set of queues; one of which nothing is set has no row. A retention, in seconds, is there whole or
-- not at all.
CREATE TABLE creche_queues (
    queue_name     text COLLATE "C" PRIMARY KEY,
    paused_at      timestamptz,
    keep_completed double precision,
    keep_failed    double precision,
    keep_cancelled double precision
);

-- Who works, as it was said last. No index but the key, and room on the page: it is written again and again, in place.
CREATE TABLE creche_workers (
    name       text COLLATE "C" PRIMARY KEY,
    presence   json             NOT NULL,
    started_at timestamptz      NOT NULL,
    seen_at    timestamptz      NOT NULL,
    expires_at timestamptz      NOT NULL
) WITH (fillfactor = 50);
