"""The command line, run folders, logging and evaluation."""
