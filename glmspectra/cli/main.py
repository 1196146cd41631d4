"""Composes the commands and turns an error into one sentence and an exit status."""

import functools
import inspect as inspection
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from glmspectra import __version__
from glmspectra.cli.chat import chat
from glmspectra.cli.console import printable, write_any_character
from glmspectra.cli.convert import convert
from glmspectra.cli.delta import delta
from glmspectra.cli.doctor import doctor
from glmspectra.cli.evaluate import evaluate
from glmspectra.cli.example import CommandWithExample
from glmspectra.cli.failures import INTERRUPTED, interruption, sentence
from glmspectra.cli.infer import infer
from glmspectra.cli.init import init
from glmspectra.cli.inspect import inspect
from glmspectra.cli.libraries import compile_when_called, fetch_no_kernels
from glmspectra.cli.loop import demo, loop
from glmspectra.cli.merge import merge
from glmspectra.cli.report import report
from glmspectra.cli.squeeze import squeeze
from glmspectra.cli.suggest_rank import suggest_rank
from glmspectra.cli.svd import svd
from glmspectra.cli.train import train
from glmspectra.cli.values import values
from glmspectra.language import LANGUAGES, choose
from glmspectra.language.catalogue import AUTO
from glmspectra.launch import read_launch

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
    """What `glmspectra` takes before a command: `--version` and `--debug`."""
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
    """Register a command under its function's name: its docstring is the help, an example ends it, `--lang` joins."""
    app.command(cls=CommandWithExample, help=flowing(command.__doc__))(with_language(command))


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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 failed while working, 2 the request was wrong, 130 interrupted.

    An error that no one foresaw is one sentence too, and a traceback with --debug.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # `--debug` is taken anywhere on the line, so that it can be appended to a command that just failed.
    arguments = [argument for argument in arguments if argument != "--debug"]
    write_any_character()
    fetch_no_kernels()
    compile_when_called()
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


if __name__ == "__main__":
    main()
