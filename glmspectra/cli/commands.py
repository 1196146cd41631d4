"""The table of commands, of which only the one that is asked for is imported, and how their help is laid out."""

import functools
import inspect as inspection
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from glmspectra.cli.example import CommandWithExample
from glmspectra.language import LANGUAGES, choose
from glmspectra.language.catalogue import AUTO

if TYPE_CHECKING:
    from click import Command, Context, HelpFormatter

# Command -> the module below `cli/` that holds a function of the command's name; in the order of the design page.
MODULES = {
    "init": "init",
    "doctor": "doctor",
    "inspect": "inspect",
    "convert": "convert",
    "values": "values",
    "svd": "svd",
    "delta": "delta",
    "suggest-rank": "suggest_rank",
    "train": "train",
    "evaluate": "evaluate",
    "merge": "merge",
    "squeeze": "squeeze",
    "chat": "chat",
    "infer": "infer",
    "report": "report",
    "loop": "loop",
    "demo": "loop",
}
Language = Annotated[
    str, typer.Option(help=f"Language of words and pages: {', '.join(LANGUAGES)}, or {AUTO} for the locale's.")
]


def function_of(name: str) -> Callable[..., None]:
    """The function of a command; its module is imported."""
    function: Callable[..., None] = getattr(import_module(f"glmspectra.cli.{MODULES[name]}"), name.replace("-", "_"))
    return function


def flowing(text: str | None) -> str:
    """A docstring with each paragraph on one line: Typer keeps line breaks, which a narrow terminal breaks again."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


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


class Commands(Mapping[str, "Command"]):
    """Name -> command, made when it is taken: its docstring is the help, an example ends it, `--lang` joins."""

    def __init__(self) -> None:
        self._made: dict[str, Command] = {}

    def __getitem__(self, name: str) -> "Command":
        if name not in self._made:
            function = function_of(name)  # KeyError: there is none
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            alone.command(name, cls=CommandWithExample, help=flowing(function.__doc__))(with_language(function))
            self._made[name] = typer.main.get_command(alone)  # type: ignore[assignment]
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class CommandGroup(TyperGroup):
    """All commands; their list has the whole first sentence of each, where Typer's own would cut it to a line."""

    def __init__(self, *, commands: Any = None, **settings: Any):
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:  # type: ignore[override]
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, flowing(function_of(name).__doc__).split("\n\n")[0]) for name in MODULES])
