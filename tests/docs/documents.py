"""Runs the command blocks of a document in a folder where everything they name is there, in little."""

import json
import re
import shlex
import shutil
from pathlib import Path

from glmspectra.cli.main import main
from glmspectra.embedded import EMBEDDED_MODEL

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^(?P<indent> *)```bash\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
# Pilots take minutes here; tests/loop trains them.
LEFT_OUT = ("--pilot", "--pilot-seeds")
FEW_ROWS = "few-rows"
SHORTER = {
    "train_args": {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "logging_steps": 1, "warmup_steps": 0},
    "finetune_args": {"dataset_path": FEW_ROWS, "max_length": 64},
}


def commands(document: Path) -> list[list[str]]:
    """The command lines of a document's bash blocks, split as a shell splits them."""
    text = document.read_text(encoding="utf-8")
    lines = (line.strip() for block in BLOCK.finditer(text) for line in block["body"].splitlines())
    return [shlex.split(line, comments=True) for line in lines if line and not line.startswith("#")]


def arguments_of(command: list[str]) -> list[str]:
    """What `glmspectra` is given by a command; a launcher of several processes is taken off."""
    if "-m" in command:
        assert command[0] in ("torchrun", "accelerate"), command
        assert command[command.index("-m") + 1] == "glmspectra", command
        arguments = command[command.index("-m") + 2 :]
    else:
        assert command[0] == "glmspectra", f"a block of commands holds {command}"
        arguments = command[1:]
    for option in LEFT_OUT:
        if option in arguments:
            del arguments[arguments.index(option) : arguments.index(option) + 2]
    if "--find-lr" in arguments:
        arguments += ["--lr-steps", "2"]
    return [argument.replace("/shared/run", "shared-run") for argument in arguments]


def prepare(folder: Path) -> None:
    """Put the folders that documents name into `folder`, and two steps on a few short rows into every preset."""
    (folder / FEW_ROWS).mkdir()
    for name, rows in (("train.jsonl", 24), ("valid.jsonl", 4)):
        lines = (ROOT / "data" / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / FEW_ROWS / name).write_text("".join(lines[:rows]), encoding="utf-8")
    for name in ("chatglm2-6b", "my-model"):
        (folder / name).symlink_to(EMBEDDED_MODEL)
    run(["svd", "--layers", "all", "--quiet"], folder)  # a pilot, left out here, would measure what is missing
    run(["init", "--quiet"], folder)
    run(["train", "--out", "runs/qlora", "--quiet"], folder)
    shutil.copytree(folder / "runs" / "qlora" / "final_adapter", folder / "my-adapter")


def run(arguments: list[str], folder: Path) -> int:
    """Run one command in the current folder, which is `folder`; its exit status."""
    if arguments[0] == "init":
        arguments = [*arguments, "--force"]  # the settings that were shortened below are in the way
    try:
        main(arguments)
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    if arguments[0] == "init":
        for name, shorter in SHORTER.items():
            for path in folder.glob(f"args_file/**/{name}.json"):
                values = json.loads(path.read_text(encoding="utf-8"))
                path.write_text(json.dumps(values | shorter), encoding="utf-8")
    return status
