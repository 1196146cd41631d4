"""What an adapter changes: its configuration, its factors, where its start lies."""
