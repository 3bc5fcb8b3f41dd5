-- The moment, whenever the transaction began.
SELECT clock_timestamp()
