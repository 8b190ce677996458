"""Do these tasks conflict, where, and what would help."""
