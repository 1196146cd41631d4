"""Every way to tell how many directions a matrix needs, in one registry.

What each does and where it is from is `criterion-<name>` in the catalogue, in both languages.

A criterion reads `Evidence` and answers for each target with one of three things, its `answer`:

- 'gain': an array, what each further direction is worth (float64, 0 or more); the best sum is sought;
- 'threshold': an array, the size of each direction; all over one global size are kept;
- 'score': one number; ranks are shared out in proportion to it.

No rule from base weights beat uniform ranks on both models that it was tried on (`study_gains`), and published ones
contradict each other (some give more rank to what others give less); `suggest` therefore always has the
controls beside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from glmspectra.errors import RequestError
from glmspectra.language import text
from glmspectra.ranks.evidence import Evidence

AnswerType = Literal["gain", "threshold", "score"]
Answer = Mapping[str, "np.ndarray | float"]
Measure = Callable[[Evidence, str | None], Answer]


@dataclass(frozen=True)
class Criterion:
    """One entry of the registry.

    Attributes:
        name: as above.
        answer: as above.
        needs: the quantity of the tables it reads, None for none.
        option: what may follow the name after a colon, with its default.
        measure: `measure(evidence, option)` answers for each target.
    """

    name: str
    answer: AnswerType
    needs: str | None
    option: str | None
    measure: Measure

    @property
    def source(self) -> str:
        """What it does and where it is from, in the language in use."""
        return text(f"criterion-{self.name}")


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, answer: AnswerType, needs: str | None, option: str | None = None
) -> Callable[[Measure], Measure]:
    """Register the decorated function as the criterion `name`; the arguments are the fields of `Criterion`."""

    def register(measure: Measure) -> Measure:
        CRITERIA[name] = Criterion(name, answer, needs, option, measure)
        return measure

    return register


def find(asked: str) -> tuple[Criterion, str | None]:
    """The criterion of 'name' or 'name:option', and the option.

    RequestError for a name that is not in the registry.
    """
    name, colon, option = asked.partition(":")
    if name not in CRITERIA:
        raise RequestError(
            f"--criterion {asked}: there is no {name!r}; there are {', '.join(CRITERIA)}, type:NAME and "
            "mixture:NAME=WEIGHT,NAME=WEIGHT."
        )
    found = CRITERIA[name]
    if colon and found.option is None:
        raise RequestError(f"--criterion {asked}: {name} takes no option after a colon.")
    return found, (option if colon else found.option)


def available(evidence: Evidence) -> list[str]:
    """Names of the criteria that the tables at hand can answer, controls first."""
    return [name for name, entry in CRITERIA.items() if entry.needs is None or evidence.has(entry.needs)]


def rank_for_share(sigma: np.ndarray, energy: float, share: float) -> float:
    """Directions that hold `share` of `energy`, of which only the largest values sigma are known.

    Past these a lower bound, each further direction counted with the energy of the last known one.
    """
    held = np.cumsum(sigma**2)
    wanted = share * energy * (1 - 1e-12)
    if not held.size or held[-1] == 0:
        return 0.0
    if held[-1] >= wanted:
        return float(np.searchsorted(held, wanted) + 1)
    last = float(sigma[-1] ** 2)
    return len(sigma) + (wanted - float(held[-1])) / last if last > 0 else float(len(sigma))


def _share(option: str | None, name: str) -> float:
    try:
        value = float(option or "")
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise RequestError(
            f"--criterion {name}:{option}: a share of energy between 0 and 1 is expected, such as {name}:0.9."
        )
    return value


# Controls.


@criterion("uniform", "score", None)
def uniform(evidence: Evidence, option: str | None) -> Answer:
    """The same rank everywhere, the control that everything else must beat."""
    return dict.fromkeys((target.name for target in evidence.targets), 1.0)


@criterion("random", "score", None, option="0")
def random(evidence: Evidence, option: str | None) -> Answer:
    """Random ranks (option: seed): exponential scores, so that shares are spread evenly over the simplex."""
    try:
        seed = int(option or 0)
    except ValueError:
        raise RequestError(f"--criterion random:{option}: the seed is a whole number.") from None
    draws = np.random.default_rng(seed).exponential(size=len(evidence.targets))
    return {target.name: float(draw) for target, draw in zip(evidence.targets, draws, strict=True)}


# From the spectra of the base weights.


@criterion("energy-threshold", "score", "weight", option="0.9")
def energy_threshold(evidence: Evidence, option: str | None) -> Answer:
    """Directions that hold a share (option, 0.9) of the weight's energy, sum of sigma^2."""
    share = _share(option, "energy-threshold")
    norms = evidence.column("weight", "frobenius_norm")
    return {name: rank_for_share(sigma, norms[name] ** 2, share) for name, sigma in evidence.spectra("weight").items()}


@criterion("top-k-share", "score", "weight")
def top_k_share(evidence: Evidence, option: str | None) -> Answer:
    """The original study's reading of ChatGLM2-6B (ShayDuane/ChatGlm2-6B_LoRa)."""
    shares = evidence.column("weight", "top12_share_of_singular_value_sum")
    return {name: 1.0 / share if share > 0 else 0.0 for name, share in shares.items()}


@criterion("effective-rank", "score", "weight")
def effective_rank(evidence: Evidence, option: str | None) -> Answer:
    """Exponential of the entropy of sigma / sum(sigma): Roy & Vetterli 2007, The effective rank."""
    return evidence.column("weight", "effective_rank")


@criterion("stable-rank", "score", "weight")
def stable_rank(evidence: Evidence, option: str | None) -> Answer:
    """||W||_F^2 / ||W||_2^2 (Rudelson & Vershynin 2007): SA-LoRA's prior for ranks."""
    return evidence.column("weight", "stable_rank")


@criterion("spikes", "score", "weight")
def spikes(evidence: Evidence, option: str | None) -> Answer:
    """Singular values beyond the edge of the Marchenko-Pastur bulk: directions that are not noise."""
    return evidence.column("weight", "mp_spikes")


@criterion("gavish-donoho", "score", "weight")
def gavish_donoho(evidence: Evidence, option: str | None) -> Answer:
    """Singular values over the optimal hard threshold for an unknown noise level (Gavish & Donoho 2014)."""
    return evidence.column("weight", "gavish_donoho_rank")


@criterion("alpha", "score", "weight")
def alpha(evidence: Evidence, option: str | None) -> Answer:
    """Exponent of the power law in the tail of the eigenvalues."""
    return evidence.column("weight", "alpha")


# From what quantization leaves out.


@criterion("quantisation", "gain", "quant_error")
def quantization(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i^2 of W - Q(W): the energy that one more direction gives back to a quantized base."""
    return {name: sigma**2 for name, sigma in evidence.spectra("quant_error").items()}


@criterion("quantisation-rank", "score", "quant_error", option="0.5")
def quantization_rank(evidence: Evidence, option: str | None) -> Answer:
    """Directions needed to recover a share (option, 0.5) of the energy of W - Q(W), proportional."""
    share = _share(option, "quantisation-rank")
    norms = evidence.column("quant_error", "frobenius_norm")
    return {
        name: rank_for_share(sigma, norms[name] ** 2, share) for name, sigma in evidence.spectra("quant_error").items()
    }


# From gradients of a few batches.


@criterion("gradient", "gain", "gradient")
def gradient(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i^2 of the loss gradient over a few batches: the first-order decrease that direction i offers a step."""
    return {name: sigma**2 for name, sigma in evidence.spectra("gradient").items()}


@criterion("gradient-importance", "score", "gradient")
def gradient_importance(evidence: Evidence, option: str | None) -> Answer:
    """Mean of |W * dL/dW| over a few batches: GoRA (He et al. 2025), its importance, proportional."""
    return evidence.column("gradient", "gradient_importance")


# From the change that an earlier training made.


@criterion("delta-threshold", "threshold", "delta")
def delta_threshold(evidence: Evidence, option: str | None) -> Answer:
    """Keep every direction whose sigma_i of delta-W is over one global threshold that the budget sets."""
    return evidence.spectra("delta", absent_is_zero=True)


@criterion("delta-fan", "threshold", "delta")
def delta_fan(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i of delta-W times sqrt(cols / rows), one global threshold."""
    sizes = evidence.spectra("delta", absent_is_zero=True)
    return {t.name: sizes[t.name] * (t.cols / t.rows) ** 0.5 for t in evidence.targets}


@criterion("delta-relative", "threshold", "delta")
def delta_relative(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i of delta-W over the largest singular value of the base's weight, one global threshold."""
    sizes, base = evidence.spectra("delta", absent_is_zero=True), evidence.spectra("weight")
    return {name: sigma / base[name][0] if base[name][0] > 0 else 0 * sigma for name, sigma in sizes.items()}


@criterion("delta-adamw", "threshold", "delta_adamw")
def delta_adamw(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i of V^(1/4) delta-W V^(1/4), one global threshold; V: AdamW's second moments, read from optimizer.pt."""
    return evidence.spectra("delta_adamw", absent_is_zero=True)


@criterion("delta-tempered", "threshold", "delta_tempered")
def delta_tempered(evidence: Evidence, option: str | None) -> Answer:
    """The same with the eighth root of V, whose mean in each matrix is clipped to the 10 and 90 % quantiles."""
    return evidence.spectra("delta_tempered", absent_is_zero=True)


@criterion("delta-energy", "gain", "delta")
def delta_energy(evidence: Evidence, option: str | None) -> Answer:
    """sigma_i^2 of delta-W: the energy of the change that direction i keeps (Eckart & Young 1936)."""
    return {name: sigma**2 for name, sigma in evidence.spectra("delta", absent_is_zero=True).items()}


@criterion("delta-rank", "score", "delta", option="0.9")
def delta_rank(evidence: Evidence, option: str | None) -> Answer:
    """Directions that hold a share (option, 0.9) of the energy of delta-W, proportional."""
    share = _share(option, "delta-rank")
    found = evidence.spectra("delta", absent_is_zero=True)
    return {name: rank_for_share(sigma, float(np.sum(sigma**2)), share) for name, sigma in found.items()}
