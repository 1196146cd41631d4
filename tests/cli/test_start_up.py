"""`--help` answers at once: no torch, transformers or pandas on the way, in a fresh process."""

import subprocess
import sys
import time

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "scipy", "numpy", "matplotlib", "seaborn", "datasets", "peft")
REPORT = f"print([name for name in {HEAVY!r} if name in sys.modules])"


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}\n{REPORT}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_command_line_imports_nothing_heavy():
    assert in_a_fresh_process("import glmspectra.cli.main") == "[]"


def test_a_heavy_import_would_be_seen():
    assert in_a_fresh_process("import glmspectra.cli.main, glmspectra.store") != "[]"


def test_help_answers_within_a_moment():
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is not what is measured
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "glmspectra", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert "svd" in done.stdout
        assert "values" in done.stdout
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import typer, rich.console"], check=True)
    bare = time.perf_counter() - bare
    assert min(seconds) < max(1.0, 3 * bare)
