"""Composes the commands and turns an error into one sentence and an exit status."""

import errno
import functools
import inspect as inspection
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from glmspectra import __version__
from glmspectra.cli.chat import chat
from glmspectra.cli.convert import convert
from glmspectra.cli.delta import delta
from glmspectra.cli.doctor import doctor
from glmspectra.cli.evaluate import evaluate
from glmspectra.cli.infer import infer
from glmspectra.cli.init import init
from glmspectra.cli.inspect import inspect
from glmspectra.cli.libraries import fetch_no_kernels
from glmspectra.cli.loop import demo, loop
from glmspectra.cli.merge import merge
from glmspectra.cli.report import report
from glmspectra.cli.squeeze import squeeze
from glmspectra.cli.suggest_rank import suggest_rank
from glmspectra.cli.svd import svd
from glmspectra.cli.train import train
from glmspectra.cli.values import values
from glmspectra.errors import GlmspectraError
from glmspectra.language import LANGUAGES, choose
from glmspectra.language.catalogue import AUTO

INTERRUPTED = 130
# What is true of a command after Ctrl-C; all others write their result whole at the end.
GOES_ON = "what was finished is kept; the same command goes on from there."
GOES_ON_FROM_CHECKPOINT = (
    "the same command goes on from the last checkpoint in its output folder; where there is none yet, it begins anew."
)
BEGINS_ANEW = "nothing was written yet; the same command begins anew."
AFTER_INTERRUPTION = dict.fromkeys(("svd", "values", "delta", "suggest-rank", "convert", "loop", "demo"), GOES_ON) | {
    "train": GOES_ON_FROM_CHECKPOINT
}

app = typer.Typer(
    name="glmspectra",
    help="Measures the weights of ChatGLM2-6B and trains it by what it measured.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def flowing(text: str | None) -> str:
    """A docstring with each paragraph on one line: Typer keeps line breaks, which a narrow terminal breaks again."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


Language = Annotated[
    str, typer.Option(help=f"Language of words and pages: {', '.join(LANGUAGES)}, or {AUTO} for the locale's.")
]


def with_language(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `--lang`, which all have: the language of what it says and of the pages it writes."""

    @functools.wraps(command)
    def speaking(*args: Any, lang: str = AUTO, **kwargs: Any) -> None:
        choose(lang)
        command(*args, **kwargs)

    own = inspection.signature(command)
    option = inspection.Parameter("lang", inspection.Parameter.KEYWORD_ONLY, default=AUTO, annotation=Language)
    speaking.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    speaking.__annotations__ = {**command.__annotations__, "lang": Language}
    return speaking


def add(command: Callable[..., None]) -> None:
    app.command(help=flowing(command.__doc__))(with_language(command))


# One line a command, in the order of the design page; each module holds one function of the command's name.
add(init)
add(doctor)
add(inspect)
add(convert)
add(values)
add(svd)
add(delta)
add(suggest_rank)
add(train)
add(evaluate)
add(merge)
add(squeeze)
add(chat)
add(infer)
add(report)
add(loop)
add(demo)


def interrupted(arguments: list[str]) -> str:
    """What is said at Ctrl-C: what is left of the command's work, and what the same command does next."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    kept = AFTER_INTERRUPTION.get(command, BEGINS_ANEW)
    return f"interrupted: {BEGINS_ANEW if {'--dry-run', '--find-lr'} & set(arguments) else kept}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 failed while working, 2 the request was wrong, 130 interrupted.

    An error that no one foresaw is one sentence too, and a traceback with --debug.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    fetch_no_kernels()
    # `--debug` is taken anywhere on the line, so that it can be appended to a command that just failed.
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(arguments, prog_name="glmspectra")
    except GlmspectraError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except OSError as error:
        if debug or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        place = error.filename or "a result"
        message = f"{place} cannot be read or written ({error.strerror}): name another place, or mend this one."
        typer.echo(f"error: {message}", err=True)
        sys.exit(GlmspectraError.exit_status)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # Typer turns Ctrl-C into this status, without a word
            typer.echo(interrupted(arguments), err=True)
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            # Ctrl-C while a compiled module was being imported: Python makes an ImportError of it.
            typer.echo(interrupted(arguments), err=True)
            sys.exit(INTERRUPTED)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        typer.echo(
            f"error: {what} (not foreseen; what was finished is kept; --debug at the end of the command shows where).",
            err=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
