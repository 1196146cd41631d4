"""What the columns of `matrices.parquet` are called on axes and in table heads, in which unit, and how to read them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Name in the table, words for an axis, unit, one sentence of meaning, and how its numbers are spread."""

    name: str
    label: str
    unit: str
    meaning: str
    share: bool = False  # a fraction, shown in percent
    signed: bool = False  # has a natural zero in the middle

    @property
    def axis(self) -> str:
        """Axis label: words and unit."""
        return f"{self.label} ({'%' if self.share else self.unit})" if self.unit or self.share else self.label


_DIRECTIONS = "directions"
_WEIGHT = "units of the weight"
_NONE = "no unit"
_QUANTILES = ("0001", "001", "01", "05", "25", "50", "75", "95", "99", "999", "9999")  # decimals of the share below

COLUMNS = {
    column.name: column
    for column in (
        Column("rows", "rows", "", "Output features of the weight."),
        Column("cols", "columns", "", "Input features of the weight."),
        Column("count", "size", "entries", "Number of entries of the weight."),
        Column("mean", "mean weight", _WEIGHT, "Mean of all entries; far from zero is unusual.", signed=True),
        Column("std", "standard deviation", _WEIGHT, "Spread of the entries."),
        Column("skewness", "skewness", _NONE, "Zero for a symmetric distribution.", signed=True),
        Column(
            "excess_kurtosis",
            "excess kurtosis",
            _NONE,
            "0 for a normal distribution, 3 for Laplace; large means outliers.",
        ),
        Column(
            "abs_max", "largest |weight|", _WEIGHT, "The entry farthest from zero; it sets the scale of int4 and int8."
        ),
        Column("min", "smallest weight", _WEIGHT, "The lowest entry.", signed=True),
        Column("max", "highest weight", _WEIGHT, "The highest entry.", signed=True),
        *(
            Column(
                f"q_{digits}",
                f"{100 * float(f'0.{digits}'):.4g} % quantile",
                _WEIGHT,
                f"{100 * float(f'0.{digits}'):.4g} % of the entries are at or below this value.",
                signed=True,
            )
            for digits in _QUANTILES
        ),
        Column("share_nan", "entries that are NaN", "", "Share of entries that are no number.", share=True),
        Column("share_inf", "entries that are infinite", "", "Share of infinite entries.", share=True),
        Column("share_zero", "entries that are zero", "", "Share of exact zeros.", share=True),
        Column("share_beyond_3_sigma", "entries beyond 3 std", "", "0.27 % for a normal distribution.", share=True),
        Column("share_beyond_4_sigma", "entries beyond 4 std", "", "0.0063 % for a normal distribution.", share=True),
        Column("share_beyond_5_sigma", "entries beyond 5 std", "", "0.000057 % for a normal distribution.", share=True),
        Column(
            "share_beyond_6_sigma", "entries beyond 6 std", "", "0.0000002 % for a normal distribution.", share=True
        ),
        Column(
            "normal_ks",
            "distance from normal",
            _NONE,
            "Kolmogorov-Smirnov distance from the fitted normal distribution.",
        ),
        Column(
            "laplace_ks",
            "distance from Laplace",
            _NONE,
            "Kolmogorov-Smirnov distance from the fitted Laplace distribution.",
        ),
        Column(
            "student_t_ks",
            "distance from Student-t",
            _NONE,
            "Kolmogorov-Smirnov distance from the fitted Student-t distribution.",
        ),
        Column(
            "normal_wasserstein",
            "Wasserstein distance from normal",
            _NONE,
            "Mean distance by which the entries, in standard deviations, would have to move to be normal.",
        ),
        Column("row_norm_median", "median row norm", _WEIGHT, "Median of the Euclidean norms of the rows (outputs)."),
        Column(
            "col_norm_median", "median column norm", _WEIGHT, "Median of the Euclidean norms of the columns (inputs)."
        ),
        Column(
            "abs_max_in_std", "largest |weight|", "standard deviations", "The entry farthest from zero over the spread."
        ),
        Column("row_peak", "largest over median row norm", _NONE, "1 where all rows (outputs) are alike."),
        Column("column_peak", "largest over median column norm", _NONE, "1 where all columns (inputs) are alike."),
        Column(
            "student_t_df",
            "Student-t degrees of freedom",
            _NONE,
            "Small means heavy tails; above 30 it is nearly normal.",
        ),
        Column("frobenius_norm", "Frobenius norm", _WEIGHT, "Square root of the sum of squares of all entries."),
        Column("spectral_norm", "spectral norm", _WEIGHT, "The largest singular value."),
        Column("nuclear_norm", "nuclear norm", _WEIGHT, "Sum of the singular values."),
        Column("condition_number", "condition number", _NONE, "Largest over smallest singular value."),
        Column(
            "stable_rank",
            "stable rank",
            _DIRECTIONS,
            "Squared Frobenius over squared spectral norm: energy counted in units of the largest direction.",
        ),
        Column(
            "effective_rank",
            "effective rank",
            _DIRECTIONS,
            "exp of the entropy of the normalised singular values (Roy and Vetterli 2007).",
        ),
        Column(
            "participation_ratio", "participation ratio", _DIRECTIONS, "(sum of sigma^2)^2 over the sum of sigma^4."
        ),
        Column(
            "energy_rank_50",
            "directions for 50 % of energy",
            _DIRECTIONS,
            "Fewest directions that hold half of the squared Frobenius norm.",
        ),
        Column(
            "energy_rank_80",
            "directions for 80 % of energy",
            _DIRECTIONS,
            "Fewest directions that hold 80 % of the squared Frobenius norm.",
        ),
        Column(
            "energy_rank_90",
            "directions for 90 % of energy",
            _DIRECTIONS,
            "Fewest directions that hold 90 % of the squared Frobenius norm.",
        ),
        Column(
            "energy_rank_95",
            "directions for 95 % of energy",
            _DIRECTIONS,
            "Fewest directions that hold 95 % of the squared Frobenius norm.",
        ),
        Column(
            "energy_rank_99",
            "directions for 99 % of energy",
            _DIRECTIONS,
            "Fewest directions that hold 99 % of the squared Frobenius norm.",
        ),
        Column(
            "top12_share_of_singular_value_sum",
            "top 12, share of the sum of σ",
            "",
            "Sum of the 12 largest singular values over the sum of all.",
            share=True,
        ),
        Column(
            "top12_energy_share",
            "top 12, share of energy",
            "",
            "Squares of the 12 largest singular values over the squared Frobenius norm.",
            share=True,
        ),
        Column(
            "mp_spikes",
            "spikes beyond the bulk edge",
            _DIRECTIONS,
            "Singular values above the Marchenko-Pastur edge: directions that noise of this size hardly ever makes.",
        ),
        Column(
            "mp_edge",
            "Marchenko-Pastur edge",
            _WEIGHT,
            "Noise of the bulk's level goes beyond it once in a hundred matrices; parts of a fused weight may differ "
            "in scale.",
        ),
        Column("mp_sigma", "bulk noise level", _WEIGHT, "Standard deviation of the entries of the fitted noise."),
        Column(
            "gavish_donoho_threshold",
            "Gavish-Donoho threshold",
            _WEIGHT,
            "Singular values below it cost more noise than they give signal (Gavish and Donoho 2014).",
        ),
        Column(
            "gavish_donoho_rank", "Gavish-Donoho rank", _DIRECTIONS, "Singular values above the optimal hard threshold."
        ),
        Column(
            "alpha",
            "power-law exponent α",
            _NONE,
            "Of the tail of the eigenvalues of W^T W; 2 to 4 is usual for trained layers, above 6 is close to random.",
        ),
        Column(
            "alpha_ks",
            "power-law fit distance",
            _NONE,
            "Kolmogorov-Smirnov distance of the tail fit; above 0.1 the exponent says little.",
        ),
        Column(
            "alpha_xmin", "start of the power-law tail", "squared units of the weight", "The eigenvalue it begins at."
        ),
        Column("alpha_tail", "size of the power-law tail", _DIRECTIONS, "Eigenvalues from the start of the tail on."),
        Column("alpha_weighted", "weighted α", _NONE, "α times log10 of the largest eigenvalue."),
        Column("log_norm", "log10 of squared Frobenius norm", _NONE, "log10 of the sum of the eigenvalues of W^T W."),
        Column(
            "log_spectral_norm", "log10 of squared spectral norm", _NONE, "log10 of the largest eigenvalue of W^T W."
        ),
        Column("hill_alpha", "Hill estimate of α", _NONE, "The tail exponent by Hill's estimator."),
        Column(
            "relative_frobenius",
            "||ΔW|| / ||W||",
            "",
            "Frobenius norm of the change over that of the weight.",
            share=True,
        ),
        Column("intruders", "intruder dimensions", _DIRECTIONS, "Top directions of W + ΔW that resemble none of W."),
        Column("overlap_left", "overlap of ΔW with W, left", _NONE, "φ of the leading left directions, 0 to 1."),
        Column("overlap_right", "overlap of ΔW with W, right", _NONE, "φ of the leading right directions, 0 to 1."),
        Column("rank", "rank in use", _DIRECTIONS, "Directions of ΔW above the rounding floor."),
        Column("allotted_rank", "rank allotted", _DIRECTIONS, "Rank of the adapter's factors."),
        Column("noise_floor", "rounding floor", _WEIGHT, "Largest singular value that rounding can have made."),
        Column(
            "share_of_rank_in_use",
            "share of the allotted rank in use",
            "",
            "Directions that hold 99 % of the energy of ΔW over the rank of the adapter.",
            share=True,
        ),
        Column(
            "effective_rank_above_floor",
            "effective rank above the floor",
            _DIRECTIONS,
            "Effective rank of ΔW from the singular values above the rounding floor alone.",
        ),
        Column(
            "share_unchanged", "entries unchanged", "", "Share of entries that training left as they were.", share=True
        ),
        Column(
            "overlap_directions", "directions compared", _DIRECTIONS, "How many leading directions the overlaps are of."
        ),
        Column(
            "gradient_importance",
            "importance by gradients",
            "nats",
            "Mean of |weight times gradient of the loss| over the entries.",
        ),
        Column("amplification", "amplification factor", _NONE, "Size of ΔW over that of W in the directions of ΔW."),
    )
}


def column(name: str) -> Column:
    """The column's description; a column not listed here is described by its own name."""
    return COLUMNS.get(name) or Column(name, name.replace("_", " "), "", "A column of matrices.parquet.")
