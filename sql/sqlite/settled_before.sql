-- Whether a lease that settle did not find was settled by its own holder before: the answer was lost, and it asks again.
-- Anybody else's touch since would have changed the token.
SELECT 1
FROM creche_jobs
WHERE id = :id
    AND token = :token
    AND nonce = :nonce
    AND status <> 'processing'
