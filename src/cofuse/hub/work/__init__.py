"""The hub's work: jobs in the database, done by workers anywhere, each exactly once as far as anybody can tell."""
