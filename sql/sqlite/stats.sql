-- How many jobs of each queue stand in which state, since when the oldest ready one is due, how many came to an end a
-- moment ago; and what people have said of a queue, which then needs no job to be named. One branch for each index: the
-- jobs are counted without touching a row.
SELECT
    queue_name, 'pending' AS status, count(*) AS jobs, min(available_at) AS oldest, 0 AS just_finished,
    NULL AS paused_at, NULL AS keep_completed, NULL AS keep_failed, NULL AS keep_cancelled
FROM creche_jobs WHERE status = 'pending' GROUP BY queue_name
UNION ALL
SELECT queue_name, 'scheduled', count(*), NULL, 0, NULL, NULL, NULL, NULL
FROM creche_jobs WHERE status = 'scheduled' GROUP BY queue_name
UNION ALL
SELECT queue_name, 'processing', count(*), NULL, 0, NULL, NULL, NULL, NULL
FROM creche_jobs WHERE status = 'processing' GROUP BY queue_name
UNION ALL
SELECT queue_name, status, count(*), NULL, sum(completed_at > :finished_after), NULL, NULL, NULL, NULL
FROM creche_jobs WHERE completed_at IS NOT NULL GROUP BY queue_name, status
UNION ALL
SELECT queue_name, NULL, 0, NULL, 0, paused_at, keep_completed, keep_failed, keep_cancelled
FROM creche_queues
