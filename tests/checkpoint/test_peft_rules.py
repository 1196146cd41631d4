"""Which key of a rank_pattern applies to a module: PEFT's own answer, in linear time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from glmspectra.errors import CheckpointError, ConfigError
from glmspectra.peft_rules import ModulePatterns, matched_by, module_pattern

MODULES = [
    f"{start}layers.{i}.{end}" for start in ("", "x.") for i in (0, 1, 11) for end in ("dense", "mlp.dense", "q")
]
KEYS = [
    "layers.1.dense", "dense", r"^layers\.11\.q", "1.q", ".*", r"layers\.[01]\.(q|dense)", "mlp.dense", "^q", "^x.*q",
    r"layers\.\d+\.q", "q)|(dense", "ense", *(module_pattern(module) for module in MODULES[:4]),
]  # fmt: skip


@given(st.lists(st.sampled_from(KEYS), max_size=6), st.sampled_from(MODULES))
def test_the_first_key_that_matches_is_pefts(keys, module):
    assert (ModulePatterns(keys).first(module) or module) == get_pattern_key(keys, module)


def test_a_pattern_of_a_module_matches_it_alone():
    assert matched_by(module_pattern("layers.1.dense"), MODULES) == ["layers.1.dense"]
    assert matched_by("layers.1.dense", MODULES) == ["layers.1.dense", "x.layers.1.dense"]


def test_a_hostile_pattern_ends_at_once():
    assert ModulePatterns(["(a+)+b", "(a|a)*$b"]).first("a" * 20_000) is None


@pytest.mark.parametrize("key", ["(a", "(?=a)b", r"(a)\1", "a{1000}{1000}", "x|" * 10_000])
def test_what_re2_lacks_is_refused_by_name(key):
    with pytest.raises(CheckpointError, match=r"rank_pattern key .* is no regular expression that is run here"):
        ModulePatterns([key])
    with pytest.raises(ConfigError, match="alpha_pattern key"):
        matched_by(key, [], "alpha_pattern", ConfigError)
