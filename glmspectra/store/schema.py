"""The three tables of a run, column by column: the one place where their names and types stand.

A column that is not listed here is refused, so that a misspelt statistic cannot slip into a table unseen.
Every column but the identity of a row may be null: `values` fills the middle block, `svd` the last.
"""

import pyarrow as pa

# Raised when a column changes its meaning: runs of another schema are measured anew, never mixed in.
# 2: the noise level and edge of a fused weight are those of its parts (spectra/stacked_noise.py).
SCHEMA_VERSION = 2

KINDS = ("values", "spectrum")
QUANTITIES = ("weight", "delta", "merged", "quant_error", "gradient")
STATUSES = ("ok", "nonfinite")

_text, _whole, _real = pa.string(), pa.int64(), pa.float64()

# What identifies a singular value's or a bin's matrix.
_KEY = [
    pa.field("quantity", _text, nullable=False),
    pa.field("step", _whole),
    pa.field("name", _text, nullable=False),
    pa.field("layer", _whole),
    pa.field("matrix", _text, nullable=False),
    pa.field("part", _text, nullable=False),
]

IDENTITY = [
    pa.field("checkpoint", _text, nullable=False),
    pa.field("fingerprint", _text, nullable=False),
    *_KEY,
    pa.field("rows", _whole, nullable=False),
    pa.field("cols", _whole, nullable=False),
    pa.field("dtype", _text, nullable=False),
    pa.field("method", _text),
    pa.field("seconds", _real),
    pa.field("status", _text, nullable=False),
]

_QUANTILES = ["q_0001", "q_001", "q_01", "q_05", "q_25", "q_50", "q_75", "q_95", "q_99", "q_999", "q_9999"]

VALUE_COLUMNS = [
    pa.field("count", _whole),
    *(pa.field(name, _real) for name in ("mean", "std", "skewness", "excess_kurtosis", "min", "max", "abs_max")),
    *(pa.field(name, _real) for name in _QUANTILES),
    *(pa.field(name, _real) for name in ("share_zero", "share_nan", "share_inf")),
    *(pa.field(f"share_beyond_{k}_sigma", _real) for k in (3, 4, 5, 6)),
    pa.field("best_fit", _text),
    *(pa.field(name, _real) for name in ("normal_ks", "laplace_ks", "student_t_ks", "student_t_df")),
    pa.field("normal_wasserstein", _real),
    pa.field("largest_rows", pa.list_(_whole)),
    pa.field("largest_row_norms", pa.list_(_real)),
    pa.field("largest_cols", pa.list_(_whole)),
    pa.field("largest_col_norms", pa.list_(_real)),
    pa.field("row_norm_median", _real),
    pa.field("col_norm_median", _real),
]

SPECTRUM_COLUMNS = [
    *(pa.field(name, _real) for name in ("frobenius_norm", "spectral_norm", "nuclear_norm", "condition_number")),
    *(pa.field(name, _real) for name in ("stable_rank", "effective_rank", "participation_ratio")),
    *(pa.field(f"energy_rank_{percent}", _whole) for percent in (50, 80, 90, 95, 99)),
    *(pa.field(name, _real) for name in ("top12_share_of_singular_value_sum", "top12_energy_share")),
    *(pa.field(name, _real) for name in ("mp_sigma", "mp_edge")),
    pa.field("mp_spikes", _whole),
    pa.field("gavish_donoho_threshold", _real),
    pa.field("gavish_donoho_rank", _whole),
    *(pa.field(name, _real) for name in ("alpha", "alpha_xmin", "alpha_ks")),
    pa.field("alpha_tail", _whole),
    *(pa.field(name, _real) for name in ("alpha_weighted", "log_norm", "log_spectral_norm", "hill_alpha")),
]

# What a change of a weight has beside its spectrum (sweep/delta.py says what each is).
DELTA_COLUMNS = [
    *(pa.field(name, _whole) for name in ("allotted_rank", "rank")),
    *(pa.field(name, _real) for name in ("share_of_rank_in_use", "noise_floor", "effective_rank_above_floor")),
    *(pa.field(name, _real) for name in ("share_unchanged", "relative_frobenius")),
    pa.field("overlap_directions", _whole),
    *(pa.field(name, _real) for name in ("overlap_left", "overlap_right", "amplification")),
    pa.field("intruders", _whole),
    *(pa.field(name, pa.list_(_real)) for name in ("intruder_cosines", "similarity_left", "similarity_right")),
    # Of a gradient: the mean of |W * G| over the entries (GoRA's importance).
    pa.field("gradient_importance", _real),
]

MATRICES = pa.schema([*IDENTITY, *VALUE_COLUMNS, *SPECTRUM_COLUMNS, *DELTA_COLUMNS])

SINGULAR_VALUES = pa.schema(
    [
        *_KEY,
        pa.field("index", _whole, nullable=False),
        pa.field("sigma", _real, nullable=False),
        pa.field("error_bound", _real, nullable=False),
    ]
)

HISTOGRAMS = pa.schema(
    [
        *_KEY,
        pa.field("bin_left", _real, nullable=False),
        pa.field("bin_right", _real, nullable=False),
        pa.field("count", _whole, nullable=False),
    ]
)

TABLES = {"matrices": MATRICES, "singular_values": SINGULAR_VALUES, "histograms": HISTOGRAMS}

# The columns of `matrices` that a measurement of each kind may fill.
MEASURED = {
    "values": frozenset(field.name for field in VALUE_COLUMNS),
    "spectrum": frozenset(field.name for field in [*SPECTRUM_COLUMNS, *DELTA_COLUMNS]),
}
