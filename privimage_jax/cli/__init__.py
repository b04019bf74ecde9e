"""The command line: one file for each command, with its flags and its help; `commands/` has what they do."""
