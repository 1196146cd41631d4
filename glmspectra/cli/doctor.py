"""`glmspectra doctor`: what is wrong with this machine for glmspectra's work, and how to mend it."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import typer

from glmspectra.cli.options import Json
from glmspectra.language import listed, text

GOOD, WEAK, BAD = "ok", "note", "fault"
MARKS = {GOOD: "✓", WEAK: "·", BAD: "✗"}
FREE_GIB = 30  # ChatGLM2-6B as .bin, as safetensors, and a merged copy


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, GOOD, WEAK (works with less) or BAD, and a sentence in the reader's language."""

    name: str
    state: str
    words: str


def doctor(as_json: Json = False) -> None:
    """What is wrong with this machine, and how to mend it: versions, GPU, bitsandbytes, Triton, disk, fonts.

    Exit status 1 where something must be mended before commands can work.
    """
    from glmspectra.cli.console import finish

    checks = [*packages(), *accelerator(), disk(Path.cwd()), fonts(), output()]
    bad = sum(check.state == BAD for check in checks)
    lines = [f"{MARKS[check.state]} {check.name}: {check.words}" for check in checks]
    lines.append(text("doctor-faults", count=bad) if bad else text("doctor-well"))
    finish({"checks": [asdict(check) for check in checks], "faults": bad}, lines, as_json)
    if bad:
        raise typer.Exit(1)


def packages() -> list[Check]:
    """Python and each requirement of the project beside what is installed; extras that are missing are WEAK."""
    from importlib import metadata

    from packaging.requirements import Requirement

    found = [Check("Python", GOOD, sys.version.split()[0])]
    for line in metadata.requires("glmspectra") or []:
        asked = Requirement(line)
        extra = re.search(r"extra == ['\"]([a-z]+)['\"]", str(asked.marker or ""))
        if extra and extra[1] not in ("qlora", "gguf", "evaluate", "tensorboard"):
            continue
        try:
            version = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            state, words = (
                (WEAK, text("doctor-extra", wanted=f"{asked.name}{asked.specifier}"))
                if extra
                else (BAD, text("doctor-missing", name=asked.name))
            )
        else:
            fits = asked.specifier.contains(version, prereleases=True)
            state = GOOD if fits else BAD
            words = (
                version if fits else text("doctor-version", version=version, wanted=f"{asked.name}{asked.specifier}")
            )
        found.append(Check(asked.name, state, words))
    return found


def accelerator() -> list[Check]:
    """The CUDA devices that torch sees, and the packages that work on them."""
    import torch

    if not torch.cuda.is_available():
        return [Check("GPU", WEAK, text("doctor-no-gpu"))]
    checks = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        size = f"{card.total_memory / 2**30:.0f} GiB"
        half = "bfloat16" if card.major >= 8 else "float16"
        checks.append(Check(f"cuda:{index}", GOOD, text("doctor-gpu", name=card.name, size=size, dtype=half)))
    checks.append(_works("bitsandbytes", "doctor-four-bit", _four_bit))
    checks.append(_works("triton", "doctor-kernels", lambda: None))
    return checks


def _works(package: str, without: str, use: Callable[[], None]) -> Check:
    """Whether a package is there and `use` runs; `without` names the message of what is missed else."""
    if find_spec(package) is None:
        return Check(package, WEAK, text(without))
    try:
        use()
    except Exception as error:  # whatever a compiled package may raise as it is loaded or run
        return Check(package, BAD, text("doctor-broken", error=" ".join(f"{type(error).__name__}: {error}".split())))
    return Check(package, GOOD, text("doctor-works"))


def _four_bit() -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.ones(64, 64, dtype=torch.float16, device="cuda")
    packed, state = quantize_4bit(weight, quant_type="nf4")
    if not torch.equal(dequantize_4bit(packed, state), weight):
        raise RuntimeError("a matrix of ones did not come back from NF4 as ones")


def disk(folder: Path) -> Check:
    """Free space where results would go."""
    free = shutil.disk_usage(folder).free / 2**30
    words = text("doctor-disk", free=f"{free:.0f}", folder=str(folder))
    return Check("disk", GOOD, words) if free >= FREE_GIB else Check("disk", WEAK, words + text("doctor-little-disk"))


def fonts() -> Check:
    """Whether SVG files (`--svg`) can show Chinese; pages use the browser's fonts."""
    from glmspectra.figures.svg.words import CHINESE_FONTS, chinese_font

    found = chinese_font()
    if found is not None:
        return Check("fonts", GOOD, found)
    return Check("fonts", WEAK, text("doctor-no-fonts", names=listed(CHINESE_FONTS)))


def output() -> Check:
    """Whether the terminal can show what is printed."""
    encoding = (sys.stdout.encoding or "ascii").lower()
    if encoding.replace("-", "") == "utf8":
        return Check("terminal", GOOD, encoding)
    return Check("terminal", WEAK, text("doctor-encoding", encoding=encoding))
