"""What ships for the author of another storage, and for tests of code that dispatches jobs."""
