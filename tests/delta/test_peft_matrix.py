"""The matrix of PEFT configurations: merge and delta agree with PEFT, or refuse where PEFT refuses, in a sentence."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import GlmspectraError
from glmspectra.store import Measurement, Request
from glmspectra.sweep.delta_measure import DeltaMeasurer
from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta
from glmspectra.sweep.known_base import KnownBase
from tests.delta.peft_matrix import FAMILIES, Case, Made, Matrix, cases, logits_of

TOLERANCE = 1e-6  # of the largest entry or singular value


class Kept:
    """Stands where a run's folder is: keeps what is written to it."""

    def __init__(self) -> None:
        self.sigma: dict[str, np.ndarray] = {}

    def write(self, request: Request, measurement: Measurement, vectors: object = None) -> None:
        self.sigma[measurement.name] = measurement.singular_values["whole"][0]


def spectra(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What `delta BASE ADAPTER --matrices all` measures: weight -> singular values of its change."""
    plan = plan_delta(base, adapter, DeltaOptions(device="cpu", quiet=True, matrices="all"))
    try:
        kept = Kept()
        measurer = DeltaMeasurer(plan, kept, "cpu", KnownBase())
        for record in plan.matrices:
            measurer.measure(record, {request.key: set(request.names) for request in measurer.all_requests})
        return kept.sigma
    finally:
        plan.close()


def outcome(matrix: Matrix, case: Case, out: Path) -> tuple[str, str]:
    """'equal', 'refused' (PEFT too), 'refused alone', 'not made' (by PEFT) or 'different'; and what was said of it."""
    made = matrix.make(case)
    if made.not_made:
        return "not made", made.not_made
    base = matrix.base(case.family, case.tied)
    try:
        merge(base, made.adapter, out)
    except GlmspectraError as error:
        sentence = str(error)
        assert "\n" not in sentence
        return ("refused" if made.not_merged or made.contradicts else "refused alone"), sentence
    if made.not_merged:
        return "different", f"merged here, where PEFT says {made.not_merged}"
    loaded = matrix.load(case, out)
    wrong = [*_logits(made, loaded), *_weights(made, loaded), *_spectra(made, spectra(base, made.adapter))]
    return ("different", "; ".join(wrong)) if wrong else ("equal", "")


def _logits(made: Made, loaded: torch.nn.Module) -> list[str]:
    """Against PEFT's forward; where PEFT's own merge is another model, either of the two will do."""
    accepted = [logits for logits in (made.logits, made.merged_logits) if logits is not None]
    found = logits_of(loaded)
    apart = min((float((found - logits).abs().max() / logits.abs().max()) for logits in accepted), default=0.0)
    return [f"logits {apart:.1e} apart"] if not apart <= 10 * TOLERANCE else []


def _weights(made: Made, loaded: torch.nn.Module) -> list[str]:
    found = loaded.state_dict()
    wrong = []
    for name, expected in made.after.items():
        if name == "cls.predictions.bias":  # BERT computes with the tied decoder.bias
            continue
        scale = max(1.0, float(expected.abs().max()))
        apart = float((found[name] - expected).abs().max())
        if not apart <= TOLERANCE * scale:
            wrong.append(f"{name} {apart:.1e} apart")
    return wrong


def _spectra(made: Made, measured: dict[str, np.ndarray]) -> list[str]:
    wrong = []
    for name, after in made.after.items():
        before = made.before[name]
        if after.ndim != 2 or torch.equal(before, after):
            continue
        if name not in measured:
            wrong.append(f"{name} changed and was not measured")
            continue
        truth = torch.linalg.svdvals(after.double() - before.double()).numpy()
        sigma = np.zeros_like(truth)
        sigma[: len(measured[name])] = measured[name]
        # The difference of two float32 weights holds their rounding, which the factors do not.
        floor = TOLERANCE * max(truth[0], float(after.abs().max()))
        if np.abs(sigma - truth).max() > floor:
            wrong.append(f"sigma of {name} {np.abs(sigma - truth).max():.1e} apart of {truth[0]:.1e}")
    return wrong


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()


def run(family: str, chosen: list[Case], folder: Path) -> Counter[str]:
    matrix, counts, wrong = Matrix(folder), Counter(), []
    for number, case in enumerate(chosen):
        result, said = outcome(matrix, case, folder / f"merged-{number}")
        counts[result] += 1
        if result in ("different", "refused alone"):
            wrong.append(f"{case}: {result}: {said}")
    print(f"\n{family}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    assert not wrong, "\n".join(wrong)
    return counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_configuration_of_peft(tmp_path, family):
    """But those of the sample below."""
    counts = run(family, [case for number, case in enumerate(cases(family)) if number % 17 != 3], tmp_path)
    assert counts["equal"] > 50


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_of_the_configurations_of_peft(tmp_path, family):
    counts = run(family, list(cases(family))[3::17], tmp_path)
    assert counts["equal"] >= 3
