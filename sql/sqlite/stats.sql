-- How many jobs of each queue stand in which state, and since when the oldest ready one is due. One branch for each
-- index: all four are read without touching a row.
SELECT queue_name, 'pending' AS status, count(*) AS jobs, min(available_at) AS oldest
FROM creche_jobs WHERE status = 'pending' GROUP BY queue_name
UNION ALL
SELECT queue_name, 'scheduled', count(*), NULL
FROM creche_jobs WHERE status = 'scheduled' GROUP BY queue_name
UNION ALL
SELECT queue_name, 'processing', count(*), NULL
FROM creche_jobs WHERE status = 'processing' GROUP BY queue_name
UNION ALL
SELECT queue_name, status, count(*), NULL
FROM creche_jobs WHERE completed_at IS NOT NULL GROUP BY status, queue_name
