"""`glmspectra chat`: talk to a model, with or without an adapter."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Device, Json, Model, Quiet


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
            "with an adapter the form it was trained in by default.",
        ),
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of an answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token each time.")] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of probability to draw from.")] = 0.8,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws.", show_default=False)
    ] = None,
    four_bit: Annotated[bool, typer.Option("--4bit", help="Load the model in NF4.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a model: a conversation on a terminal, or one question and its answer.

    Example: glmspectra chat "头晕怎么办？" --adapter runs/train/final_adapter --temperature 0
    """
    import sys
    import time

    from glmspectra.cli.console import finish, stderr
    from glmspectra.cli.libraries import hush
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.errors import RequestError

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
    place = choose_model(model)
    if adapter is not None and not adapter.is_dir():  # said before minutes of loading
        raise RequestError(f"--adapter {adapter}: there is no such folder.")

    from glmspectra.tuning.data.template import has_chat_form
    from glmspectra.tuning.inference.batch import load_for_inference
    from glmspectra.tuning.inference.conversation import HELP, Conversation, talk
    from glmspectra.tuning.model.loading import positions_of

    hush(quiet or as_json)
    loaded = load_for_inference(place, adapter, device, template, four_bit=four_bit)
    form = template
    if template == "auto":
        rounds = has_chat_form(loaded.tokenizer) and (adapter is None or loaded.encoder.template == "chat")
        form = "chat" if rounds else "plain"
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    conversation = Conversation(
        loaded.model, loaded.tokenizer, form, max_new_tokens, positions_of(loaded.model.config), **sampling
    )
    if query is None:
        if not quiet:
            who = f"{place.name} with {adapter.name}" if adapter else place.name
            stderr.print(f"{who}. {HELP}", highlight=False, markup=False)

        def show(piece: str) -> None:
            sys.stdout.write(piece)
            sys.stdout.flush()

        talk(conversation, lambda: input("> "), show)
        return
    start = time.perf_counter()
    for _ in conversation.ask(query):
        pass
    answer = conversation.rounds[-1][1]
    seconds = time.perf_counter() - start
    result = {
        "model": str(place),
        "adapter": str(adapter) if adapter else None,
        "template": form,
        "query": query,
        "answer": answer,
        "new_tokens": conversation.new_tokens,
        "seconds": round(seconds, 3),
    }
    finish(result, answer, as_json)
