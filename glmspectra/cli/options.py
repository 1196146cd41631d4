"""The options that every command shares, each fact stated once.

Nothing here or at the top of a command module may import torch, transformers, pandas or rich: `--help` is to answer at
once.
"""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="A model folder or file. Absent: model_path of the settings in args_file/, where there are any, else the "
        "embedded model, nano.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where results go.", show_default=False)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
ShardSize = Annotated[
    float,
    typer.Option("--shard-size", help="Most gigabytes (GB, 10^9 bytes, as huggingface counts) in one file of weights."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, no notes.")]
