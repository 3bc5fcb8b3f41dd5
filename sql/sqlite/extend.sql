-- Push the deadline of one lease out, never in. Fenced by the whole lease; one that has run out but that nobody took
-- over is still its holder's. No index has a column that this changes.
UPDATE creche_jobs
SET locked_until = max(locked_until, :locked_until)
WHERE id = :id
    AND token = :token
    AND nonce = :nonce
    AND status = 'processing'
RETURNING cancel_requested
