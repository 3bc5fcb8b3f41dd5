-- What answers, in its own words.
SELECT version()
