-- The schema of a queue in one SQLite file. STRICT, because a column that takes any type hides a driver's mistakes.
--
-- ids are UUIDs as canonical text: version 7 begins with its time, so new rows stand side by side in the index, and
-- text sorts as the UUID does. Times are INTEGER microseconds since 1970-01-01 UTC, the full precision of what Python
-- sends, and compared without parsing. To read one:
--   SELECT datetime(created_at / 1000000, 'unixepoch') FROM creche_jobs;
-- SQLite has no clock but its host's. It is read by the adapter inside the transaction, while the file's only write
-- lock is held, and handed in as :now.
--
-- Payloads and results are TEXT that SQLite has checked to be JSON: it is kept byte for byte, and json_extract reads it.

CREATE TABLE creche_jobs (
    id                TEXT    NOT NULL PRIMARY KEY CHECK (length(id) = 36),
    queue_name        TEXT    NOT NULL,
    type              TEXT    NOT NULL,
    status            TEXT    NOT NULL
        CHECK (status IN ('pending', 'scheduled', 'processing', 'completed', 'failed', 'cancelled')),
    priority          INTEGER NOT NULL,
    attempts          INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    max_attempts      INTEGER NOT NULL,
    available_at      INTEGER NOT NULL,
    locked_until      INTEGER,
    locked_by         TEXT,
    -- The lease: token rises with each reservation, and whenever somebody who does not hold it changes the row (nonce is
    -- 0 then, which no client draws twice in a row's life). Both stay in the finished row: a settle sent again is known.
    token             INTEGER NOT NULL DEFAULT 0,
    nonce             INTEGER NOT NULL DEFAULT 0,
    cancel_requested  INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    idempotency_key   TEXT,
    fingerprint       TEXT             CHECK (length(fingerprint) = 64),  -- hexadecimal: batches come in as JSON
    -- Whether this row is the one that a dispatch of the same fingerprint joins: from its insert until it failed, was
    -- cancelled, or completed without a cached result; a stale cached result lets go when the next dispatch finds it.
    single_flight     INTEGER NOT NULL DEFAULT 0 CHECK (single_flight IN (0, 1)),
    result_ttl        INTEGER,         -- microseconds
    result_expires_at INTEGER,
    last_error        TEXT,            -- the newest of them in one line, for people
    progress          REAL,            -- from 0 to 1, of the attempt that runs or ran last
    progress_message  TEXT,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL,
    completed_at      INTEGER,         -- set in every finished state
    -- What may be large comes last: SQLite reads a row from its front, and all pages before the column that it wants.
    result            TEXT             CHECK (result IS NULL OR json_valid(result)),
    errors            TEXT    NOT NULL DEFAULT '[]' CHECK (json_valid(errors)),
    -- What is to run when the job is over, {"success": […], "failure": […], "always": […]}; NULL: nothing. An end takes
    -- the lists that it calls for out, with the jobs that it writes from them: what still stands here was never written.
    callbacks         TEXT             CHECK (callbacks IS NULL OR json_valid(callbacks)),
    origin            TEXT             CHECK (origin IS NULL OR json_valid(origin)),  -- whose callback this is
    payload           TEXT    NOT NULL CHECK (json_valid(payload))
) STRICT;

-- Exactly the order of reserve: it reads the head of a queue and nothing else. Jobs that are not due are `scheduled` and
-- do not stand in its way. `type` comes last, for workers that know only some types: what they can't run they pass over
-- without reading its row (50,000 of them: 13 ms instead of 49).
CREATE INDEX creche_jobs_ready ON creche_jobs (queue_name, priority DESC, available_at, id, type)
    WHERE status = 'pending';

CREATE INDEX creche_jobs_due ON creche_jobs (queue_name, available_at) WHERE status = 'scheduled';

-- Not on locked_until: a renewal must not move an index entry. There are never more of these than workers' slots.
CREATE INDEX creche_jobs_held ON creche_jobs (queue_name) WHERE status = 'processing';

-- Who is asked to end what. Hardly ever anybody: whoever sees that another process has committed something can afford to
-- look here each time. What runs has a holder, and nothing else has; the status would be a reason to take creche_jobs_held.
CREATE INDEX creche_jobs_asked ON creche_jobs (locked_by, id, token)
    WHERE cancel_requested = 1 AND locked_by IS NOT NULL;

-- For prune, which goes from queue to queue, for each may have a retention of its own: what one keeps for a year does not
-- stand before what others keep for a day. The column behind answers from the index alone which results are still fresh.
CREATE INDEX creche_jobs_finished ON creche_jobs (queue_name, status, completed_at, result_expires_at)
    WHERE completed_at IS NOT NULL;

-- Of any number of dispatches at once, one inserts: the index decides, in the statement that inserts.
CREATE UNIQUE INDEX creche_jobs_key ON creche_jobs (queue_name, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX creche_jobs_flight ON creche_jobs (fingerprint) WHERE single_flight = 1;

-- A copy, without a foreign key: it outlives the job's row.
CREATE TABLE creche_dead_letters (
    job_id       TEXT    NOT NULL PRIMARY KEY,
    queue_name   TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    payload      TEXT    NOT NULL CHECK (json_valid(payload)),
    priority     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    buried_at    INTEGER NOT NULL,
    errors       TEXT    NOT NULL CHECK (json_valid(errors))
) STRICT;

CREATE INDEX creche_dead_letters_buried ON creche_dead_letters (queue_name, buried_at);

-- What people have said of a queue. One that nobody has said anything of has no row: there are few of these.
CREATE TABLE creche_queues (
    queue_name     TEXT    NOT NULL PRIMARY KEY,
    paused_at      INTEGER,
    -- How long its finished jobs are kept, in microseconds: all three, or none.
    keep_completed INTEGER CHECK ((keep_completed IS NULL) = (keep_failed IS NULL)),
    keep_failed    INTEGER CHECK ((keep_failed IS NULL) = (keep_cancelled IS NULL)),
    keep_cancelled INTEGER
) STRICT;

-- Who works here, as each worker says of itself again and again; one that was killed is forgotten at expires_at.
CREATE TABLE creche_workers (
    name       TEXT    NOT NULL PRIMARY KEY,
    presence   TEXT    NOT NULL CHECK (json_valid(presence)),
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE TABLE creche_migrations (
    version    INTEGER NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;
