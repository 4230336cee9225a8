"""The commands, one a file. Each checks everything that the user gave, and returns what is left to do."""
