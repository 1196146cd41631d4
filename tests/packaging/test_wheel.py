"""The wheel holds all that the checkout holds: built, unpacked elsewhere, and used from there alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"__pycache__"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "glmspectra", source / "glmspectra", ignore=shutil.ignore_patterns(*GENERATED))
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(source / "dist"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = (source / "dist").glob("*.whl")
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(unpacked):
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in (folder / "glmspectra").rglob("*") if path.is_file())
        return {str(path) for path in found if not GENERATED & set(path.parts)}

    assert files(unpacked) == files(ROOT)
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.slow
def test_the_wheel_alone_measures_and_writes_its_presets(unpacked, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "glmspectra", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    code = "import glmspectra; print(glmspectra.__file__)"
    results = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert Path(results.stdout.strip()).is_relative_to(unpacked), "the checkout is not used"
    run("init")
    assert (tmp_path / "args_file" / "train_args.json").is_file()
    assert "next: glmspectra train" in run("init", "--help"), "the example of a command's help"
    assert run("chat", "头晕怎么办？", "--temperature", "0", "--max-new-tokens", "8", "--device", "cpu").strip()
    run("svd", "--layers", "0", "--quiet")
    assert list((tmp_path / "reports").glob("*/index.html"))
