"""The commands: each parses its options, makes one library call and ends with an exit code."""
