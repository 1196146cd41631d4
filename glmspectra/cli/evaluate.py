"""`glmspectra evaluate`: a model with or without an adapter, on rows that were not trained on."""

from pathlib import Path
from typing import Annotated

import typer

from glmspectra.cli.options import Device, Json, Model, Out, Quiet
from glmspectra.cli.train import ArgsFolder, Columns, OnBadData, Overrides, settings_options
from glmspectra.language import text

Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="A PEFT adapter folder: compare with it and without.", show_default=False),
]


def evaluate(
    adapter: Adapter = None,
    args: ArgsFolder = Path("args_file"),
    overrides: Overrides = None,
    model: Model = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Another data file or folder.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option("--split", help="valid or train.")] = "valid",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows at most.", show_default=False)] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="Answers to show side by side.")] = 0,
    scored: Annotated[int, typer.Option("--scored", min=0, help="Rows to generate for ROUGE-L and BLEU.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of an answer.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows at a time.")] = 8,
    out: Out = None,
    on_bad_data: OnBadData = None,
    columns: Columns = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Loss, perplexity, token accuracy, and on request text scores and samples, without and with an adapter."""
    from glmspectra.cli.console import finish, note
    from glmspectra.cli.evaluation_page import write_evaluation_page
    from glmspectra.cli.libraries import hush, library_log
    from glmspectra.cli.progress_line import counting
    from glmspectra.errors import RequestError
    from glmspectra.files import must_be_there
    from glmspectra.tuning.settings.at_hand import check_at_hand
    from glmspectra.tuning.settings.load import load_settings

    if split not in ("valid", "train"):
        raise RequestError(f"--split {split}: write valid or train.")
    if adapter is not None:
        must_be_there(adapter, "--adapter")
    hush()
    options = settings_options(model, None, None, on_bad_data, columns)
    if data is not None:
        options += data_options(data, split)
    settings = load_settings(args, [*options, *(overrides or [])])
    check_at_hand(settings, trains=False)
    from glmspectra.checkpoint.selection import beside_sentence  # after the settings, as all that takes seconds

    note(beside_sentence(Path(settings.finetune.model_path)), quiet)
    if out is not None:  # what cannot be written is said before minutes of work
        out.mkdir(parents=True, exist_ok=True)
    from glmspectra.tuning.inference import evaluation

    with library_log(), counting(quiet) as progress:
        result = evaluation.evaluate(
            settings,
            adapter,
            device,
            split="train" if data is not None and data.is_file() else split,
            limit=limit,
            samples=samples,
            scored=scored,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
    if data is not None:
        result.split = str(data)
    lines = result.lines()
    for sample in result.samples:
        lines += [
            "",
            *(
                text("evaluation-sample", name=text(f"evaluation-sample-{name}"), said=said)
                for name, said in sample.items()
            ),
        ]
    if out is not None:
        evaluation.write_evaluation(result, out)
        lines.append(text("evaluation-written", path=str(write_evaluation_page(result, out))))
    finish(result.as_dict(), lines, as_json)


def data_options(data: Path, split: str) -> list[str]:
    """A single file is evaluated whole; of a folder, its split."""
    import json

    whole = [
        "finetune.valid_fraction=null",
        "finetune.valid_path=null",
        "finetune.packing=false",
        "train.eval_strategy=no",
    ]
    return [f"finetune.dataset_path={json.dumps(str(data))}", *(whole if data.is_file() else whole[:2])]
