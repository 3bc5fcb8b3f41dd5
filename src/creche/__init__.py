"""creche: a persistent job queue on the database you already have, run by structured concurrency."""
