-- What upkeep would find to do, and when; and in which queues something is ready. It locks nothing and writes nothing, so an
-- idle worker asks this one statement, where the upkeep itself is nine, and no other for its polls.
-- Queues are found by hopping through each index from one name to the next, as in promote.sql and prune.sql; of each, the
-- first entry says enough. The conditions are those of recover.sql, promote.sql, prune.sql and the other three.
WITH RECURSIVE clock (now) AS (
    SELECT coalesce(%(now)s::timestamptz, now())
), waiting (name) AS (
    (SELECT queue_name FROM creche_jobs WHERE status = 'pending' ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT j.queue_name
                 FROM creche_jobs AS j
                WHERE j.status = 'pending'
                  AND j.queue_name > waiting.name
                ORDER BY j.queue_name
                LIMIT 1
           )
      FROM waiting
     WHERE waiting.name IS NOT NULL
), scheduled (name, next) AS (
    (SELECT queue_name, available_at FROM creche_jobs WHERE status = 'scheduled' ORDER BY queue_name, available_at LIMIT 1)
    UNION ALL
    SELECT first.queue_name, first.available_at
      FROM scheduled
     CROSS JOIN LATERAL (
               SELECT j.queue_name, j.available_at
                 FROM creche_jobs AS j
                WHERE j.status = 'scheduled'
                  AND j.queue_name > scheduled.name
                ORDER BY j.queue_name, j.available_at
                LIMIT 1
           ) AS first
), finished (name) AS (
    (SELECT queue_name FROM creche_jobs WHERE completed_at IS NOT NULL ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT j.queue_name
                 FROM creche_jobs AS j
                WHERE j.completed_at IS NOT NULL
                  AND j.queue_name > finished.name
                ORDER BY j.queue_name
                LIMIT 1
           )
      FROM finished
     WHERE finished.name IS NOT NULL
), buried (name) AS (
    (SELECT queue_name FROM creche_dead_letters ORDER BY queue_name LIMIT 1)
    UNION ALL
    SELECT (
               SELECT d.queue_name
                 FROM creche_dead_letters AS d
                WHERE d.queue_name > buried.name
                ORDER BY d.queue_name
                LIMIT 1
           )
      FROM buried
     WHERE buried.name IS NOT NULL
), due AS MATERIALIZED (
    SELECT min(scheduled.next) AS next FROM scheduled
), expiry AS MATERIALIZED (
    SELECT min(locked_until) + make_interval(secs => %(allowance)s) AS next FROM creche_jobs WHERE status = 'processing'
)
SELECT coalesce(due.next <= clock.now, false)
       OR coalesce(expiry.next <= clock.now, false)
       OR EXISTS (
              SELECT
                FROM finished
               CROSS JOIN LATERAL (
                         VALUES ('completed', %(completed)s::double precision),
                                ('failed', %(failed)s::double precision),
                                ('cancelled', %(cancelled)s::double precision)
                     ) AS kept (status, seconds)
                LEFT JOIN LATERAL (
                         SELECT c.keep_completed, c.keep_failed, c.keep_cancelled
                           FROM creche_queues AS c
                          WHERE c.queue_name = finished.name
                          LIMIT 1
                     ) AS q ON true
               CROSS JOIN LATERAL (
                         SELECT
                           FROM creche_jobs AS j
                          WHERE j.queue_name = finished.name
                            AND j.status = kept.status
                            AND j.completed_at <= clock.now - make_interval(secs => coalesce(
                                    CASE kept.status
                                        WHEN 'completed' THEN q.keep_completed
                                        WHEN 'failed' THEN q.keep_failed
                                        ELSE q.keep_cancelled
                                    END,
                                    kept.seconds
                                ))
                            AND coalesce(j.result_expires_at, j.completed_at) <= clock.now
                          ORDER BY j.completed_at
                          LIMIT 1
                     ) AS overdue
          )
       OR EXISTS (
              SELECT
                FROM buried
                LEFT JOIN LATERAL (
                         SELECT c.keep_failed FROM creche_queues AS c WHERE c.queue_name = buried.name LIMIT 1
                     ) AS q ON true
               CROSS JOIN LATERAL (
                         SELECT
                           FROM creche_dead_letters AS d
                          WHERE d.queue_name = buried.name
                            AND d.buried_at <= clock.now - make_interval(secs => coalesce(
                                    q.keep_failed, %(failed)s::double precision
                                ))
                          ORDER BY d.buried_at
                          LIMIT 1
                     ) AS overdue
          )
       OR coalesce(
              (SELECT since FROM creche_watches ORDER BY since LIMIT 1) <= now() - make_interval(secs => %(unwatched)s),
              false
          )
       OR EXISTS (SELECT FROM creche_workers WHERE expires_at <= clock.now) AS needed,
       extract(epoch FROM due.next - clock.now)::double precision AS due_in,
       extract(epoch FROM expiry.next - clock.now)::double precision AS expiry_in,
       ARRAY (
           SELECT waiting.name
             FROM waiting
            WHERE waiting.name IS NOT NULL
              AND (SELECT q.paused_at FROM creche_queues AS q WHERE q.queue_name = waiting.name) IS NULL
       ) AS ready
  FROM clock
 CROSS JOIN due
 CROSS JOIN expiry
