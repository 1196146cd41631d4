"""`--help` answers at once: nothing heavy on the way, and of the commands only the one that is asked for."""

import subprocess
import sys

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


def test_the_help_of_every_command_imports_nothing_heavy():
    said, found = in_a_fresh_process(HELP)
    assert found == "[]"
    assert "svd" in said
    assert "values" in said
