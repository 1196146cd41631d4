"""`glmspectra chat`: talk to a model, with or without an adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.language import both, text

if TYPE_CHECKING:
    from glmspectra.tuning.inference.conversation import Conversation


def chat(
    query: Annotated[
        str | None,
        typer.Argument(help="One question; absent: a conversation, or the question on stdin.", show_default=False),
    ] = None,
    model: Model = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT adapter folder to put on the model.", show_default=False)
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            help="chat: rounds, as the model was trained to talk; plain: the question as it stands. auto: chat, and "
            "with an adapter the template it was trained in by default.",
        ),
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of an answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token each time.")] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of probability to draw from.")] = 0.8,
    system: Annotated[
        str, typer.Option("--system", help="A text that stands before the conversation.", show_default=False)
    ] = "",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws.", show_default=False)
    ] = None,
    four_bit: Annotated[bool, typer.Option("--4bit", help="Load the model in NF4.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a model: a conversation on a terminal, or one question and its answer."""
    import sys

    from glmspectra.cli.console import note
    from glmspectra.cli.libraries import hush, library_log
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError
    from glmspectra.files import must_be_there

    if template not in ("auto", "plain", "chat"):
        raise RequestError(f"--template {template}: write auto, plain or chat.")
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise RequestError("--temperature is 0 or more, --top-p in (0, 1], and --max-new-tokens 1 or more.")
    if query is None and not sys.stdin.isatty():
        query = sys.stdin.read().strip()
    if query == "":
        raise RequestError("the question is empty: write some text.")
    if query is None and as_json:
        raise RequestError("--json gives one object for one question: name the question, or leave --json out.")
    path = choose_model(model)
    if adapter is not None:
        must_be_there(adapter, "--adapter", file_too=False)
    hush()
    from glmspectra.checkpoint.selection import beside_sentence  # after what can be said without it

    note(beside_sentence(path), quiet)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    with library_log():
        conversation = _open(path, adapter, device, template, four_bit, max_new_tokens, system, seed, sampling)
        if query is None:
            _talk(conversation, path, adapter, quiet)
        else:
            _ask_once(conversation, query, path, adapter, as_json)


def _open(
    path: Path,
    adapter: Path | None,
    device: str,
    template: str,
    four_bit: bool,
    max_new_tokens: int,
    system: str,
    seed: int | None,
    sampling: dict[str, Any],
) -> "Conversation":
    """The conversation that the options ask for, its model loaded."""
    from glmspectra.tuning.data.template import has_chat_template
    from glmspectra.tuning.inference.batch import load_for_inference
    from glmspectra.tuning.inference.conversation import Conversation
    from glmspectra.tuning.model.loading import positions_of

    loaded = load_for_inference(path, adapter, device, template, four_bit=four_bit)
    if template == "auto":
        rounds = has_chat_template(loaded.tokenizer) and (adapter is None or loaded.encoder.template == "chat")
        template = "chat" if rounds else "plain"
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    positions = positions_of(loaded.model.config)
    return Conversation(loaded.model, loaded.tokenizer, template, max_new_tokens, positions, system, **sampling)


def _talk(conversation: "Conversation", path: Path, adapter: Path | None, quiet: bool) -> None:
    import sys
    from contextlib import suppress

    from glmspectra.cli.console import note
    from glmspectra.tuning.inference.conversation import talk

    with suppress(ImportError):  # with it, arrow keys bring back and edit what was asked before
        import readline  # noqa: F401
    if not quiet:
        values: dict[str, Any] = {"model": path.name, "help": both("chat-help")}
        said = text("chat-who-adapter", **values, adapter=adapter.name) if adapter else text("chat-who", **values)
        note(said)

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    talk(conversation, lambda: input("> "), show)


def _ask_once(conversation: "Conversation", query: str, path: Path, adapter: Path | None, as_json: bool) -> None:
    import time

    from glmspectra.cli.console import finish

    start = time.perf_counter()
    for _ in conversation.ask(query):
        pass
    answer = conversation.rounds[-1][1]
    seconds = time.perf_counter() - start
    result = {
        "model": str(path),
        "adapter": str(adapter) if adapter else None,
        "template": conversation.template,
        "query": query,
        "answer": answer,
        "new_tokens": conversation.new_tokens,
        "seconds": round(seconds, 3),
    }
    finish(result, answer, as_json)
