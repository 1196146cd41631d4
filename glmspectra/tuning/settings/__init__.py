"""From three JSON files and the command line to one checked `Settings`."""
