"""Run the command line as `python -m glmspectra`."""

from glmspectra.cli.main import run

run()
