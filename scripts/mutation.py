"""Mutation testing of spectra/ and ranks/: change one thing in the code, and see whether the quick tests notice.

    python scripts/mutation.py make MUTANTS.json --count 300     # where cosmic-ray is installed (any environment)
    python scripts/mutation.py run MUTANTS.json RESULTS.jsonl    # in the project's; goes on where it was stopped

The changes are cosmic-ray's: another operator or comparison, a number off by one, a branch never taken, a loop that
ends at once. A sample is drawn evenly over the modules by a fixed seed; changes of annotations alone are left out. Each
mutant runs in a process forked from one that has the libraries imported, against the tests in `TESTS`, within ten times
the processor time that they take on the code as it is.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEED = 20261128
SPECTRA, RANKS = "tests/spectra/test_", "tests/ranks/test_"
NUMBERS = RANKS + "planted_numbers.py"
TESTS = {
    "spectra.bounds": [SPECTRA + "bounds.py"],
    "spectra.fits": [SPECTRA + "value_distribution.py"],
    "spectra.gram": [SPECTRA + "bounds.py", SPECTRA + "singular_values.py"],
    "spectra.heavytail": [SPECTRA + "heavy_tail.py"],
    "spectra.krylov": [SPECTRA + "topk_and_vectors.py"],
    "spectra.marchenko_pastur": [SPECTRA + "marchenko_pastur.py", SPECTRA + "stacked_noise.py"],
    "spectra.moments": [SPECTRA + "value_distribution.py"],
    "spectra.refine": [SPECTRA + "small_end.py"],
    "spectra.stacked_noise": [SPECTRA + "stacked_noise.py"],
    "spectra.student_t": [SPECTRA + "value_distribution.py"],
    "spectra.summary": [SPECTRA + "summary.py", SPECTRA + "marchenko_pastur.py"],
    "spectra.values": [SPECTRA + "value_distribution.py"],
    "ranks.allocation": [RANKS + "allocation.py"],
    "ranks.budget": [NUMBERS, RANKS + "suggest.py"],
    "ranks.criteria": [NUMBERS, RANKS + "suggest.py"],
    "ranks.evidence": [NUMBERS, RANKS + "suggest.py"],
    "ranks.exports": [RANKS + "peft_patterns.py"],
    "ranks.peft_patterns": [NUMBERS, RANKS + "peft_patterns.py"],
    "ranks.report": [NUMBERS, RANKS + "suggest.py"],
    "ranks.stability": [NUMBERS, RANKS + "suggest.py"],
    "ranks.suggest": [NUMBERS, RANKS + "suggest.py"],
}
LIBRARIES = ("numpy", "scipy.stats", "scipy.optimize", "torch", "pandas", "pyarrow.parquet", "peft", "hypothesis")


class WithoutAnnotations(ast.NodeTransformer):
    """Takes out what only a type checker reads, so that two sources that run alike are equal."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(value=None)
        self.generic_visit(node)
        return node


def running(source: str) -> str:
    """What of a source runs, as text to compare by; empty where it is no Python at all."""
    try:
        return ast.dump(WithoutAnnotations().visit(ast.parse(source)))
    except SyntaxError:
        return ""


def make(target: Path, count: int) -> None:
    """Write a sample of mutants: module, operator, the number of its occurrence, and the mutated source."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {name: get_operator(name)() for name in sorted(operator_names()) if "ariable" not in name}
    generator = random.Random(SEED)
    chosen = []
    share = -(-count // len(TESTS))
    for module in TESTS:
        source = (ROOT / "glmspectra" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        plain, tree, found = running(source), get_ast(source), []
        places = []
        for name, operator in operators.items():
            occurrences = sum(sum(1 for _ in operator.mutation_positions(node)) for node in ast_nodes(tree))
            places += [(name, occurrence) for occurrence in range(occurrences)]
        generator.shuffle(places)
        for name, occurrence in places:
            mutated = mutate_code(source, operators[name], occurrence)
            if mutated is not None and running(mutated) not in (plain, ""):
                found.append({"module": module, "operator": name, "occurrence": occurrence, "source": mutated})
            if len(found) == share:
                break
        chosen += found
        print(f"{module}: {len(found)} of {len(places)}")
    generator.shuffle(chosen)
    target.write_text(json.dumps(chosen), encoding="utf-8")


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module of the package from a text instead of its file."""

    def __init__(self, module: str, source: str):
        self.module, self.source = f"glmspectra.{module}", source

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def get_data(self, path: str) -> bytes:
        return self.source.encode()

    def get_filename(self, name: str) -> str:
        return str(ROOT / (name.replace(".", "/") + ".py"))

    def get_source(self, name: str) -> str:
        return self.source


def attempt(module: str, source: str | None, tests: Sequence[str], seconds: int) -> tuple[bool, float]:
    """Whether the tests pass with a module's source replaced (None: as it is), and the processor time they took."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            if source is not None:
                sys.meta_path.insert(0, Mutated(module, source))
            import pytest

            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
            status = int(pytest.main([*options, *tests]))
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    return status == 0, used.ru_utime + used.ru_stime


def run(mutants: Path, results: Path) -> None:
    """Try every mutant that `results` has no line of; print each that survived."""
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    earlier = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("module", "operator", "occurrence")) for line in earlier}
    limits: dict[str, int] = {}
    for mutant in json.loads(mutants.read_text(encoding="utf-8")):
        module = mutant["module"]
        facts = {key: mutant[key] for key in ("module", "operator", "occurrence")}
        if tuple(facts.values()) in done:
            continue
        tests = TESTS[module]
        if str(tests) not in limits:
            passed, took = attempt(module, None, tests, 3600)
            if not passed:
                raise RuntimeError(f"{tests} fail on the code as it is")
            limits[str(tests)] = int(10 * took) + 10
        survived, took = attempt(module, mutant["source"], tests, limits[str(tests)])
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, "survived": survived, "seconds": round(took, 1)}) + "\n")
        if survived:
            print(facts, flush=True)


def main() -> None:
    """Make mutants, or run them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("mutants", type=Path)
    making.add_argument("--count", type=int, default=300)
    running_them = commands.add_parser("run")
    running_them.add_argument("mutants", type=Path)
    running_them.add_argument("results", type=Path)
    asked = parser.parse_args()
    if asked.command == "make":
        make(asked.mutants, asked.count)
    else:
        run(asked.mutants.resolve(), asked.results.resolve())


if __name__ == "__main__":
    main()
