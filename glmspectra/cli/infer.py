"""`glmspectra infer`: answers to a file of questions."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.evaluate import Adapter
from glmspectra.cli.options import Device, Json, Model, Quiet
from glmspectra.cli.train import Columns as ColumnNames
from glmspectra.language import text


def infer(
    source: Annotated[Path, typer.Argument(help="A data file of questions, of any format that train reads.")],
    out: Annotated[Path, typer.Option("--out", help="The JSONL file of answers.")],
    model: Model = None,
    adapter: Adapter = None,
    columns: ColumnNames = None,
    template: Annotated[str, typer.Option("--template", help="auto, plain or chat.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of an answer.")] = 256,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of a question at most.")] = 2048,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions at a time.")] = 8,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Share of probability to draw from.")] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws.")] = 42,
    four_bit: Annotated[bool, typer.Option("--4bit", help="Load the base in NF4.")] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answers to a file of questions, as a JSONL file in the same order, each beside the columns of its question."""
    from glmspectra.cli.console import finish, note
    from glmspectra.cli.libraries import hush, library_log
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.cli.progress_line import counting
    from glmspectra.errors import RequestError
    from glmspectra.files import must_be_there

    if template not in ("auto", "plain", "chat"):
        raise RequestError(f"--template {template}: write auto, plain or chat.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise RequestError("--temperature is 0 or more, and --top-p in (0, 1].")
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder: name the file that the answers go to.")
    must_be_there(source, kind="data file")
    if adapter is not None:
        must_be_there(adapter, "--adapter")
    model_folder = choose_model(model)
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before minutes of work
    hush()
    from glmspectra.checkpoint.selection import beside_sentence  # after what can be said without it
    from glmspectra.tuning.data.read import read_questions
    from glmspectra.tuning.data.rows import Columns
    from glmspectra.tuning.inference import batch as inference

    note(beside_sentence(model_folder), quiet)
    questions, recognized = read_questions(source, Columns.parse(columns) if columns else Columns())
    for line in recognized:
        note(line, quiet)
    conversations = any(not row.pair for _, row in questions)
    with library_log():
        loaded = inference.load_for_inference(
            model_folder, adapter, device, template, max_length, four_bit, conversations
        )
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    if sampling:
        from transformers import set_seed

        set_seed(seed)
    done = 0
    with library_log(), counting(quiet) as progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(text("progress-answers"), done, len(questions))

        name = inference.infer(loaded, questions, out, max_new_tokens, batch_size, advance, **sampling)
    result = {"rows": len(questions), "out": str(out), "column": name}
    finish(result, text("evaluation-answers", count=len(questions), path=str(out), column=name), as_json)
