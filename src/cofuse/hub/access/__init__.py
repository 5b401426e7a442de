"""Who may do what: roles, tokens, sessions, limits, the audit log."""
