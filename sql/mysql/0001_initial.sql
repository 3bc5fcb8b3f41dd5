-- The queue's tables and indexes, for MySQL and MariaDB alike. They stand in the connection's database.
--
-- ids are UUIDs in BINARY(16): version 7 begins with its time, so new rows are appended to the clustered index. To read
-- one: SELECT HEX(id). Times are DATETIME(6) in UTC, whatever time zone the server or the session has.
--
-- Names are VARBINARY: they are compared byte for byte, where a collation would fold case and accents, and pad blanks.
-- Payloads and results are text, not JSON: MySQL's JSON changes numbers and the order of keys, and MariaDB's check
-- refuses what is nested more than 31 levels deep. JSON_EXTRACT reads them all the same.
--
-- No statement of this kind can be undone here, so each can be run twice: a migration that was cut off is completed by
-- the next one.
--
-- There are no partial indexes, so a generated column that is NULL for the other rows takes the condition's place. It is
-- STORED, for an index over a virtual one has gone wrong in more than one release, and its rows that are NULL stay where
-- they are in the index while the job goes on: a row from insert to completion writes five index entries, where an index
-- that begins with the status would write eight.

CREATE TABLE IF NOT EXISTS creche_migrations (
    version    INT          NOT NULL PRIMARY KEY,
    name       VARCHAR(255) NOT NULL,
    applied_at DATETIME(6)  NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS creche_jobs (
    id                BINARY(16)      NOT NULL PRIMARY KEY,
    queue_name        VARBINARY(128)  NOT NULL,
    type              VARBINARY(128)  NOT NULL,
    payload           LONGTEXT        NOT NULL,
    status            ENUM ('pending', 'scheduled', 'processing', 'completed', 'failed', 'cancelled') NOT NULL,
    priority          SMALLINT        NOT NULL,
    attempts          INT             NOT NULL DEFAULT 0,
    max_attempts      INT             NOT NULL,
    available_at      DATETIME(6)     NOT NULL,
    locked_until      DATETIME(6),
    locked_by         VARBINARY(255),
    -- The fence: token rises with every reservation and every seizure, nonce is the reserver's 64 random bits.
    token             BIGINT          NOT NULL DEFAULT 0,
    nonce             BIGINT          NOT NULL DEFAULT 0,
    cancel_requested  BOOLEAN         NOT NULL DEFAULT FALSE,
    idempotency_key   VARBINARY(255),
    fingerprint       BINARY(32),
    -- Whether this row is what a dispatch with the same fingerprint joins. A column, because uniqueness must end by
    -- the clock when a cached result grows stale, and no index can ask a clock.
    single_flight     BOOLEAN         NOT NULL DEFAULT FALSE,
    result            LONGTEXT,
    result_ttl        BIGINT,         -- microseconds
    result_expires_at DATETIME(6),
    -- [{attempt, failed_at, type, message, traceback}], oldest first; last_error is its newest, for people.
    errors            LONGTEXT        NOT NULL,
    last_error        TEXT,
    -- {success: […], failure: […], always: […]}: what is to be written when this one ends so. NULL if there is nothing.
    callbacks         LONGTEXT,
    origin            LONGTEXT,       -- of a callback: {id, type, queue_name, status, error}, what it follows
    progress          DOUBLE,         -- from 0 to 1, as the running attempt says
    progress_message  TEXT,
    created_at        DATETIME(6)     NOT NULL,
    updated_at        DATETIME(6)     NOT NULL,
    completed_at      DATETIME(6),

    ready_queue       VARBINARY(128)  GENERATED ALWAYS AS (IF(status = 'pending', queue_name, NULL)) STORED,
    due_queue         VARBINARY(128)  GENERATED ALWAYS AS (IF(status = 'scheduled', queue_name, NULL)) STORED,
    -- MariaDB has descending indexes only since 10.8, so what comes first has the lowest rank.
    ready_rank        SMALLINT        GENERATED ALWAYS AS (-priority) STORED,
    finished_as       VARBINARY(16)   GENERATED ALWAYS AS (IF(completed_at IS NULL, NULL, status)) STORED,
    flight            BINARY(32)      GENERATED ALWAYS AS (IF(single_flight, fingerprint, NULL)) STORED,

    -- Exactly the order of claim.sql: where a filesort steps in, a reserve locks every job that waits, and its rival
    -- gets nothing. `type` comes last, for workers that know only some types.
    KEY creche_jobs_ready (ready_queue, ready_rank, available_at, id, type),

    -- The next one due, per queue.
    KEY creche_jobs_due (due_queue, available_at),

    -- Who holds what for how long; NULL where nobody does. A renewal moves its entry, which a short job never needs.
    KEY creche_jobs_held (locked_until),

    -- What may be pruned, queue by queue, for each may keep its own as long as it likes; the oldest first. The last column
    -- lets the index itself pass over results that are still fresh.
    KEY creche_jobs_finished (finished_as, queue_name, completed_at, result_expires_at),

    -- Single flight, and the caller's own names: uniqueness is the database's business, in the insert itself.
    UNIQUE KEY creche_jobs_flight (flight),
    UNIQUE KEY creche_jobs_key (queue_name, idempotency_key)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
-- A queue is empty at one moment and full at the next, and next_due.sql and finished.sql need statistics that know.
  STATS_PERSISTENT = 1 STATS_AUTO_RECALC = 1;

-- A copy, without a foreign key: it outlives the job's row.
CREATE TABLE IF NOT EXISTS creche_dead_letters (
    job_id       BINARY(16)     NOT NULL PRIMARY KEY,
    queue_name   VARBINARY(128) NOT NULL,
    type         VARBINARY(128) NOT NULL,
    payload      LONGTEXT       NOT NULL,
    priority     SMALLINT       NOT NULL,
    attempts     INT            NOT NULL,
    max_attempts INT            NOT NULL,
    created_at   DATETIME(6)    NOT NULL,
    buried_at    DATETIME(6)    NOT NULL,
    errors       LONGTEXT       NOT NULL,

    KEY creche_dead_letters_buried (queue_name, buried_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What was said of a queue by people; most have no row. How long its finished jobs are kept, in microseconds: all three
-- are set, or none.
CREATE TABLE IF NOT EXISTS creche_queues (
    queue_name     VARBINARY(128) NOT NULL PRIMARY KEY,
    paused_at      DATETIME(6),
    keep_completed BIGINT,
    keep_failed    BIGINT,
    keep_cancelled BIGINT
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who works, as they say themselves; one that doesn't say so again is forgotten when its time has run out.
CREATE TABLE IF NOT EXISTS creche_workers (
    name       VARBINARY(128) NOT NULL PRIMARY KEY,
    presence   LONGTEXT       NOT NULL,    -- {name, host, pid, backend, version, queues, concurrency, state}
    started_at DATETIME(6)    NOT NULL,
    seen_at    DATETIME(6)    NOT NULL,
    expires_at DATETIME(6)    NOT NULL,

    KEY creche_workers_expires (expires_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who waits for which job to be over; `watcher` is woken as a queue's listeners are. A row may outlive both.
CREATE TABLE IF NOT EXISTS creche_watches (
    job_id  BINARY(16)     NOT NULL,
    watcher VARBINARY(128) NOT NULL,
    since   DATETIME(6)    NOT NULL,

    PRIMARY KEY (job_id, watcher),
    KEY creche_watches_since (since)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who sleeps and wants to be woken for which queue, or by which name of its own; see find_listeners.sql. A row may outlive
-- its sleeper, which harms nobody.
CREATE TABLE IF NOT EXISTS creche_listeners (
    token         BINARY(16)     NOT NULL,
    queue_name    VARBINARY(128) NOT NULL,
    registered_at DATETIME(6)    NOT NULL,
    calls         INT UNSIGNED   NOT NULL DEFAULT 0,    -- by this name, see call_listeners.sql

    PRIMARY KEY (queue_name, token),
    KEY creche_listeners_token (token),
    KEY creche_listeners_registered (registered_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
