"""An examination of an env, and of a run: what is measured, what is healthy, and what to do where it is not."""
