"""A small page on every subject, made from synthetic tables and logs."""

from pathlib import Path

import numpy as np
import pandas as pd

from glmspectra.figures import (
    Outcome,
    Tables,
    read_training,
    write_comparison,
    write_evaluation,
    write_loop,
    write_overview,
    write_report,
    write_tables_report,
    write_training_report,
)
from glmspectra.figures.findings import Scores
from glmspectra.language import Words
from glmspectra.ranks import CRITERIA
from tests.figures.synthetic_run import make_tables, store_tables, training_folder

SUBJECTS = ("svd", "values", "delta", "ranks", "training", "evaluate", "loop", "compare")
SAMPLES = [
    {
        "context": f"下面是一个关于身体的问题，认真回答。{question}",
        "reference": "多喝水，注意休息，必要时就医。",
        "base": "我不知道这个问题的答案，因为它超出了我所学的范围。" * 4,
        "uniform": "多喝水，注意保暖，必要时就医。",
        "tuned": "多喝水，注意休息，必要时就医。",
    }
    for question in ("感冒了怎么办？", "头疼怎么办？")
]


def quantiles(tables: Tables) -> Tables:
    """The tables with the quantile columns that the page draws bands of."""
    from statistics import NormalDist

    matrices = tables.matrices
    for digits in ("0001", "001", "01", "05", "25", "50", "75", "95", "99", "999", "9999"):
        matrices[f"q_{digits}"] = matrices["std"] * NormalDist().inv_cdf(float(f"0.{digits}"))
    matrices["alpha_xmin"], matrices["alpha_tail"] = matrices["spectral_norm"] ** 2 / 9, 12
    return tables


def ranks_of(tables: Tables) -> pd.DataFrame:
    """Ranks of the whole matrices by as many criteria as there are."""
    rows = tables.matrices[tables.matrices["layer"].notna() & (tables.matrices["part"] == "whole")]
    given = {"delta-threshold": rows["layer"] % 5 + 2, "alpha": 9 - rows["layer"] % 4, "uniform": 4, "random": 3}
    given |= dict.fromkeys([name for name in CRITERIA if name not in given], 5)
    pieces = [rows[["name", "layer", "matrix"]].assign(criterion=name, rank=rank) for name, rank in given.items()]
    return pd.concat(pieces, ignore_index=True).astype({"rank": int})


def curve() -> pd.DataFrame:
    """What budgets buy."""
    pieces = []
    for i, name in enumerate(("delta-threshold", "alpha", "uniform", "random")):
        budgets = 10.0 ** np.arange(3, 7)
        held = 1 - np.exp(-np.arange(1, 5) / (2 + i))
        pieces.append(pd.DataFrame({"criterion": name, "parameters": budgets, "value": held}))
    return pd.concat(pieces, ignore_index=True).assign(metric="energy", quantity="delta")


def changed(layers: int = 3) -> Tables:
    """Changes at two steps beside the weights, with everything that a comparison with the base knows."""
    pieces = [make_tables(layers, quantity="delta", step=step, seed=step) for step in (10, 20)]
    columns = []
    for piece in pieces:
        count = np.arange(len(piece.matrices))
        phi = [list(np.round(np.linspace(0.9, 0.1, 9), 3)) for _ in count]
        rows = piece.matrices.assign(allotted_rank=8, rank=8, share_of_rank_in_use=(1 + count % 8) / 8)
        rows = rows.assign(relative_frobenius=0.02 * (1 + count % 7), noise_floor=1e-9, intruders=count % 3)
        columns.append(rows.assign(overlap_left=0.1 + 0.01 * count, similarity_left=phi, similarity_right=phi))
    weight = make_tables(layers, seed=1)
    matrices = pd.concat([*columns, weight.matrices], ignore_index=True)
    sigma = pd.concat([*(piece.singular_values for piece in pieces), weight.singular_values], ignore_index=True)
    histograms = pd.concat([*(piece.histograms for piece in pieces), weight.histograms], ignore_index=True)
    return Tables(matrices, sigma, histograms, weight.manifest)


def write_all(folder: Path) -> dict[str, Path]:
    """Subject -> its page, under folder/reports; the overview too."""
    reports = folder / "reports"
    weights = quantiles(make_tables(5, parts=True, heads=3, outside=True))
    stored = store_tables(weights, folder / "run")
    trained = [
        training_folder(folder / name, ranks=name == "ada", loss=loss) for name, loss in (("ada", 2), ("b", 2.5))
    ]
    only_values = weights.matrices.loc[:, :"frobenius_norm"].drop(columns="frobenius_norm")
    delta = changed()
    gap = {"mean": 0.003, "low": -0.018, "high": 0.024, "rows": 96}
    losses = {
        name: {"loss": 0.5, "perplexity": 1.6, "token_accuracy": 0.8} for name in ("base", "uniform", "suggested")
    }
    scores = Scores(
        losses, {"suggested-uniform": gap, "suggested-base": {**gap, "mean": -0.014, "high": -0.01}}, SAMPLES
    )
    pages = {
        "svd": write_report(stored, reports / "svd"),
        "values": write_tables_report(Tables(only_values, histograms=weights.histograms), reports / "values"),
        "delta": write_tables_report(delta, reports / "delta", ranks=ranks_of(delta)),
        "ranks": write_tables_report(weights, reports / "ranks", ranks=ranks_of(weights), budget_curve=curve()),
        "training": write_training_report(trained, reports / "training"),
        "evaluate": write_evaluation(
            reports / "evaluate",
            "nano",
            "adapter",
            Outcome(Scores({"base": losses["base"], "tuned": losses["base"]}, {"tuned-base": gap}, SAMPLES), {}),
        ),
        "loop": write_loop(
            reports / "loop",
            "nano",
            Outcome(scores, {"suggested": 118_592, "uniform": 118_784}),
            delta,
            ranks_of(delta),
            curve(),
            [read_training(path) for path in trained],
            [(Words("model", "模型"), "nano")],
            [],
            [Words("Tables: here", "数据表：这里")],
        ),
        "compare": write_comparison(
            [stored, store_tables(make_tables(6, seed=5), folder / "other")], reports / "compare"
        ),
    }
    overview = write_overview(reports)
    assert overview is not None
    return {**pages, "overview": overview}
