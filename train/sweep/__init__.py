"""rlcore sweep: many runs over a small space of settings, and which of them did best."""
