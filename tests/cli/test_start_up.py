"""`--help` answers at once: nothing heavy on the way, and of the commands only the one that is asked for."""

import subprocess
import sys
from ast import literal_eval

HEAVY = (
    *("torch", "transformers", "pandas", "pyarrow", "scipy", "numpy", "matplotlib", "seaborn", "datasets", "peft"),
    "rich",
)
REPORT = f"print([name for name in {HEAVY!r} if name in sys.modules])"


HELP = """
from glmspectra.cli.main import main
import typer.main, glmspectra.cli.main as front
for command in ["", *typer.main.get_command(front.app).commands]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as leaving:
        assert not leaving.code, command
"""


def in_a_fresh_process(code):
    """What the process printed, and then which of the heavy packages it had imported."""
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{REPORT}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, _, found = done.stdout.rstrip().rpartition("\n")
    return said, found


def test_the_command_line_imports_nothing_heavy():
    assert in_a_fresh_process("import glmspectra.cli.main")[1] == "[]"


def test_a_heavy_import_would_be_seen():
    assert in_a_fresh_process("import glmspectra.cli.main, glmspectra.store")[1] != "[]"


LIST = """
from glmspectra.cli.main import main
try:
    main(["--help"])
except SystemExit as leaving:
    print(leaving.code, [name for name in ("pydantic", "json", "logging") if name in sys.modules])
"""
ONE = """
from glmspectra.cli.main import main
try:
    main(["merge", "--help"])
except SystemExit:
    pass
from glmspectra.cli.commands import MODULES
print(sorted({f"glmspectra.cli.{name}" for name in MODULES.values()} & sys.modules.keys()))
"""


def test_the_list_of_commands_imports_what_it_prints_alone():
    said, found = in_a_fresh_process(LIST)
    assert found == "[]"
    assert said.endswith("0 []")
    assert "Measures the weights" in said


def test_of_the_commands_only_the_one_asked_for_is_imported():
    said = in_a_fresh_process(ONE)[0]
    assert said.splitlines()[-1] == "['glmspectra.cli.merge']"


MISSING = """
import os, tempfile
from glmspectra.cli.main import main
os.chdir(tempfile.mkdtemp())
main_lines = (
    "init --quiet", "train --model nowhere", "train --set finetune.dataset_path=nowhere", "evaluate --adapter nowhere",
    "train --set train.fsdp=full_shard", "infer nowhere.jsonl --out answers.jsonl", "chat hello --adapter nowhere",
    "delta nowhere", "merge nowhere --out merged", "squeeze nowhere --budget like:r=2 --out cut", "convert nowhere",
    "suggest-rank --delta nowhere", "suggest-rank --pilot 2 --model nowhere", "svd --model nowhere",
)
for line in main_lines:
    try:
        main(line.split())
    except SystemExit as leaving:
        assert leaving.code == (0 if line.startswith("init") else 2), line
"""


def test_what_is_not_there_is_said_before_anything_heavy_is_imported():
    found = set(literal_eval(in_a_fresh_process(MISSING)[1]))
    assert found <= {"numpy", "pyarrow"}, "those two take a tenth of a second"


def test_the_help_of_every_command_imports_nothing_heavy():
    said, found = in_a_fresh_process(HELP)
    assert found == "[]"
    assert "svd" in said
    assert "values" in said
