"""The command line: parsers, commands, and progress on the terminal."""
