"""report.html: what a run folder tells, on one page, and several runs beside each other."""
