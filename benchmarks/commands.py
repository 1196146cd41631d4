"""Processor time of commands on nano, start to end, beside what importing torch alone takes on this machine.

    python benchmarks/commands.py                   # this tree
    python benchmarks/commands.py --tree ../before  # another checkout beside it, each command in turn

Processor time (user and system, one thread) and not seconds by the clock, so that other work on the machine counts
little; the least of `--times` runs. The bare interpreter and `import torch` are the measure of the machine. Compiled
modules are kept and used, as those of an installed package are: the first run of a checkout writes them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NANO = ("--model", "nano")
# In this order in one folder: what a command needs, those before it have left there.
COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "init": ("init",),
    "a wrong setting": ("train", "--set", "no_such_key=3"),
    "inspect": ("inspect", *NANO),
    "svd": ("svd", *NANO),
    "svd, all finished before": ("svd", *NANO),
    "suggest-rank": ("suggest-rank", *NANO),
    "report": ("report",),
    "train --dry-run": ("train", "--dry-run"),
    "chat, one question": ("chat", *NANO),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--times", type=int, default=2, help="runs of each, in turn; the least counts")
    parser.add_argument("--only", default="", help="commands by their names here, joined by ';'")
    options = parser.parse_args()
    trees = [HERE] if options.tree is None else [options.tree.resolve(), HERE]
    wanted = [name.strip() for name in options.only.split(";") if name.strip()] or list(COMMANDS)
    for code in ("pass", "import torch"):
        seconds = min(processor_seconds([sys.executable, "-c", code], HERE, HERE) for _ in range(options.times))
        print(f"{f'python -c {code!r}':<28}{seconds:8.2f} s", flush=True)
    print(f"{'':<28}" + "".join(f"{tree.name[:14]:>16}" for tree in trees))
    least: dict[tuple[str, Path], float] = {}
    for _ in range(options.times):
        with tempfile.TemporaryDirectory() as root:
            for name in wanted:
                for position, tree in enumerate(trees):
                    folder = Path(root) / str(position)
                    folder.mkdir(exist_ok=True)
                    command = [sys.executable, "-m", "glmspectra", *COMMANDS[name]]
                    seconds = processor_seconds(command, folder, tree)
                    least[name, tree] = min(seconds, least.get((name, tree), seconds))
    for name in wanted:
        print(f"{name:<28}" + "".join(f"{least[name, tree]:14.2f} s" for tree in trees), flush=True)


def processor_seconds(command: list[str], folder: Path, tree: Path) -> float:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, input="你好\n", capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):  # 2: the wrong setting
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
