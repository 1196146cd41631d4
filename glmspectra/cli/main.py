"""Composes the commands and turns an error into one sentence and an exit status."""

import atexit
import os
import sys
import threading
from typing import Annotated

import typer

from glmspectra import __version__
from glmspectra.cli.commands import CommandGroup
from glmspectra.cli.console import printable, write_any_character
from glmspectra.cli.failures import INTERRUPTED, interruption, sentence
from glmspectra.cli.imports import prepare_imports
from glmspectra.launch import read_launch

app = typer.Typer(
    name="glmspectra",
    cls=CommandGroup,
    help="Measures the weights of ChatGLM2-6B and trains it by what it measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # drawing help by rich takes as long as all else of it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What `glmspectra` takes before a command: `--version` and `--debug`."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 failed while working, 2 the request was wrong, 130 interrupted.

    An error that no one foresaw is one sentence too, and a traceback with --debug.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # `--debug` is taken anywhere on the line, so that it can be appended to a command that just failed.
    arguments = [argument for argument in arguments if argument != "--debug"]
    write_any_character()
    prepare_imports()
    try:
        read_launch()
        app(arguments, prog_name="glmspectra")
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # Typer turns Ctrl-C into this status, without a word
            print(interruption(arguments), file=sys.stderr)
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            # Ctrl-C while a compiled module was being imported: Python makes an ImportError of it.
            print(interruption(arguments), file=sys.stderr)
            sys.exit(INTERRUPTED)
        words, status = sentence(error)
        print(f"error: {printable(words)}", file=sys.stderr)  # typer.echo would not heed an ASCII stream
        sys.exit(status)


def run() -> None:
    """Run the command line as a process: `main`, then an end that frees no memory object by object.

    Python would take apart every module of torch and transformers first, 1 to 4 s of processor time; mypy ends so too.
    """
    try:
        main()
        status: object = 0
    except SystemExit as leaving:
        status = leaving.code or 0
    if not isinstance(status, int) or any(not thread.daemon for thread in threading.enumerate()[1:]):
        sys.exit(status)  # type: ignore[arg-type]  # prints a sentence, or waits for the threads
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # what was printed last did not fit on the disk, or no one reads it any more
        if not status and not isinstance(error, BrokenPipeError):
            print(f"error: {printable(sentence(error)[0])}", file=sys.stderr, flush=True)
        status = status or 1
    os._exit(status)
