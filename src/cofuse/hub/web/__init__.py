"""The hub's pages: made on the server, without a script."""
