"""The portfolio of criteria: what a cut pilot is, and when a criterion wins against uniform ranks."""

import numpy as np
import pytest
import torch

from glmspectra.errors import RequestError
from glmspectra.loop.portfolio import Portfolio, _Pilot, best_of
from tests.loop.test_squeeze import adapter_of, changes, model

peft = pytest.importorskip("peft")


def test_a_cut_pilot_is_the_dense_truncated_svd_and_can_be_cut_again(tmp_path):
    folder, before = adapter_of(tmp_path)
    loaded = peft.PeftModel.from_pretrained(model(), folder)
    pilot = _Pilot(loaded)
    for ranks in ({name: place % 4 for place, name in enumerate(before)}, dict.fromkeys(before, 8)):
        pilot.cut(ranks)
        for name, change in changes(loaded).items():
            left, sigma, right = torch.linalg.svd(before[name])
            dense = (left[:, : ranks[name]] * sigma[: ranks[name]]) @ right[: ranks[name]]
            torch.testing.assert_close(change, dense, rtol=1e-4, atol=1e-5 * float(sigma[0]))
    with pytest.raises(RequestError, match=r"did not train model\.layers\.0\.mlp\.up_proj"):
        pilot.cut({"model.layers.0.mlp.up_proj": 2})


def rows(gap, noise, count=40):
    """Summed losses of rows with 1 to 5 tokens, `gap` nats a token from uniform's."""
    chance = np.random.default_rng(0)
    tokens = chance.integers(1, 6, count).astype(float)
    uniform = tokens * (2 + chance.normal(size=count))
    return {"uniform": uniform, "delta-threshold": uniform + tokens * (gap + noise * chance.normal(size=count))}, tokens


@pytest.mark.parametrize(
    ("gap", "noise", "winner"),
    [(-0.1, 0.01, "delta-threshold"), (0.1, 0.01, "uniform"), (-0.02, 0.5, "uniform"), (0.0, 0.0, "uniform")],
)
def test_a_criterion_wins_only_where_it_is_surely_below_uniform(gap, noise, winner):
    losses, tokens = rows(gap, noise)
    trials, chosen = best_of(losses, tokens)
    assert chosen == winner
    by_name = {trial.criterion: trial for trial in trials}
    assert by_name["uniform"].gap == 0
    assert by_name["uniform"].loss == pytest.approx(losses["uniform"].sum() / tokens.sum())
    assert by_name["delta-threshold"].low <= by_name["delta-threshold"].gap <= by_name["delta-threshold"].high
    text = " ".join(Portfolio(trials, chosen, len(tokens), 1.5, 80).lines())
    assert ("uniform ranks won" in text) == (winner == "uniform")
    assert "80 pilot steps" in text
