import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "svd.py"


@pytest.mark.slow
def test_the_benchmark_measures_time_memory_and_error_of_every_method():
    methods = ["ours", "three_lines", "numpy64", "numpy32", "study"]
    arguments = ["--divide", "64", "--kinds", "all", "--methods", ",".join(methods), "--layers", "2", "--json"]
    finished = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)
    assert list(rows) == methods
    for row in rows.values():
        assert row["seconds_each"] > 0
        assert row["seconds_all"] == pytest.approx(8 * row["seconds_each"])
    assert rows["numpy64"]["max_relative_error"] == 0
    assert 0 < rows["ours"]["max_relative_error"] < 1e-8
    assert rows["numpy32"]["max_relative_error"] > rows["ours"]["max_relative_error"]
