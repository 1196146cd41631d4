"""From tables to a rank for every matrix under one budget."""
