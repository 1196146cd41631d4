"""Typer commands, each a few lines over one function of another package."""
