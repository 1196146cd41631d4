"""Every column of the tables under `param_matrix/`: its type, its words in English and Chinese, and how it is drawn.

The one place where a column is described. The tables take their types from here (`store.schema`), and pages, figures
and commands their words. To add a statistic: compute it, and add one entry here.
"""

from dataclasses import dataclass
from typing import Any

TEXT, WHOLE, REAL, WHOLES, REALS = "text", "whole", "real", "wholes", "reals"

# Unit -> its words in English and Chinese. "" has no words: a name, or a number that needs none.
UNITS = {
    "": ("", ""),
    "%": ("%", "%"),
    "ratio": ("no unit", "无量纲"),
    "weight": ("units of the weight", "权重单位"),
    "weight^2": ("squared units of the weight", "权重单位的平方"),
    "gradient^2": ("squared nats per unit of the weight", "每权重单位奈特数的平方"),
    "std": ("standard deviations", "标准差的倍数"),
    "directions": ("directions", "个方向"),
    "entries": ("entries", "个元素"),
    "features": ("features", "个特征"),
    "nats": ("nats", "奈特"),
    "seconds": ("seconds", "秒"),
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as it stands in the file.
        type: TEXT, WHOLE (int64), REAL (float64), or a list of one of the last two (WHOLES, REALS).
        unit: a key of UNITS.
        label: (English, Chinese), for axes and heads of tables.
        meaning: (English, Chinese), one sentence.
        short: (English, Chinese) for the head of a narrow table; the label where there is none.
        share: True for a fraction from 0 to 1, which is shown in percent.
        signed: True where zero is the natural middle.
        log: True where values are compared by their ratios: drawn on a logarithmic axis.
        required: False where the table may hold null.
    """

    name: str
    type: str
    unit: str
    label: tuple[str, str]
    meaning: tuple[str, str]
    short: tuple[str, str] = ("", "")
    share: bool = False
    signed: bool = False
    log: bool = False
    required: bool = False

    def head(self, language: str = "en") -> str:
        """The short label, else the label."""
        return self.short[language == "zh"] or self.label[language == "zh"]

    def axis(self, language: str = "en") -> str:
        """Label and unit, for an axis."""
        chinese = language == "zh"
        unit = UNITS["%" if self.share else self.unit][chinese]
        return f"{self.label[chinese]} ({unit})" if unit else self.label[chinese]


def _column(
    name: str, type_: str, unit: str, english: str, chinese: str, means: str, means_chinese: str, **flags: Any
) -> Column:
    return Column(name, type_, unit, (english, chinese), (means, means_chinese), **flags)


# fmt: off
# What identifies a singular value's or a bin's matrix, in all three tables.
KEY = (
    _column("quantity", TEXT, "", "quantity", "对象",
            "What was measured: weight, delta, merged, quant_error, gradient, or the change in AdamW's metric "
            "(delta_adamw) and in its square root (delta_tempered).",
            "所测对象：权重、改变量、合并后的权重、量化误差、梯度，或 AdamW 度量（delta_adamw）"
            "及其平方根（delta_tempered）下的改变量。", required=True),
    _column("step", WHOLE, "", "step", "步数", "Optimizer updates before it; empty where there is no training.",
            "此前的优化器更新次数；与训练无关时为空。"),
    _column("name", TEXT, "", "weight", "权重名", "Name in the checkpoint.", "检查点中的名称。", required=True),
    _column("layer", WHOLE, "", "layer", "层", "Counted from 0, nearest the input.", "从 0 起，靠近输入的为 0。"),
    _column("matrix", TEXT, "", "matrix", "矩阵", "The weight's own name.", "该权重自己的名称。", required=True),
    _column("part", TEXT, "", "part", "部分", "Of a fused weight; whole for all of it.",
            "融合权重的一部分；whole 为整体。", required=True),
)

IDENTITY = (
    _column("checkpoint", TEXT, "", "checkpoint", "检查点", "Name of the model's folder.",
            "模型文件夹名。", required=True),
    _column("fingerprint", TEXT, "", "fingerprint", "指纹", "Hash of the checkpoint's files.", "检查点文件的哈希。",
            required=True),
    *KEY,
    _column("rows", WHOLE, "features", "rows", "行数", "Output features of the weight.",
            "权重的输出特征数。", required=True),
    _column("cols", WHOLE, "features", "columns", "列数", "Input features of the weight.", "权重的输入特征数。",
            required=True),
    _column("dtype", TEXT, "", "type", "类型", "As stored.", "存储类型。", required=True),
    _column("method", TEXT, "", "method", "算法", "How the spectrum was computed.", "奇异值的计算方法。"),
    _column("seconds", REAL, "seconds", "time", "用时", "Time that the measurement took.", "测量所用时间。", log=True),
    _column("status", TEXT, "", "status", "状态",
            "ok; nonfinite where the weight holds NaN, infinity or numbers beyond float32; unreadable "
            "where its format is refused.",
            "ok；权重含 NaN、无穷或超出 float32 范围的数时为 nonfinite；格式无法读取时为 unreadable。", required=True),
)

_NORMAL_BEYOND = {3: "0.27 %", 4: "0.0063 %", 5: "0.000057 %", 6: "0.0000002 %"}


def _quantile(digits: str) -> Column:
    percent = f"{100 * float(f'0.{digits}'):.4g} %"
    return _column(f"q_{digits}", REAL, "weight", f"{percent} quantile", f"{percent} 分位数",
            f"{percent} of the entries are at or below this value.", f"{percent} 的元素不大于此值。", signed=True)


QUANTILES = tuple(
    _quantile(digits) for digits in ("0001", "001", "01", "05", "25", "50", "75", "95", "99", "999", "9999")
)

VALUES = (
    _column("count", WHOLE, "entries", "size", "元素数", "Number of entries of the weight.",
            "权重的元素个数。", log=True),
    _column("mean", REAL, "weight", "mean weight", "均值", "Mean of all entries; far from zero is unusual.",
            "全部元素的均值；明显偏离零并不常见。", signed=True),
    _column("std", REAL, "weight", "standard deviation", "标准差", "Spread of the entries.",
            "元素的离散程度。", log=True, short=("std", "标准差")),
    _column("skewness", REAL, "ratio", "skewness", "偏度", "Zero for a symmetric distribution.", "对称分布为零。",
            signed=True),
    _column("excess_kurtosis", REAL, "ratio", "excess kurtosis", "超额峰度",
            "0 for a normal distribution, 3 for Laplace; large means outliers.",
            "正态分布为 0，拉普拉斯分布为 3；大则有离群值。", signed=True, short=("kurtosis", "峰度")),
    _column("min", REAL, "weight", "smallest weight", "最小值", "The lowest entry.", "最小的元素。", signed=True),
    _column("max", REAL, "weight", "highest weight", "最大值", "The highest entry.", "最大的元素。", signed=True),
    _column("abs_max", REAL, "weight", "largest |weight|", "最大绝对值",
            "The entry farthest from zero; it sets the scale of int4 and int8.",
            "离零最远的元素；它决定 int4 与 int8 的量化尺度。", log=True, short=("largest", "最大值")),
    *QUANTILES,
    _column("share_zero", REAL, "", "entries that are zero", "零元素", "Share of exact zeros.", "恰为零的元素占比。",
            share=True),
    _column("share_nan", REAL, "", "entries that are NaN", "NaN 元素", "Share of entries that are no number.",
            "非数元素占比。", share=True),
    _column("share_inf", REAL, "", "entries that are infinite", "无穷元素", "Share of infinite entries; a number "
            "beyond float32 is one.", "无穷元素占比，超出 float32 范围的数计入其中。", share=True),
    *(
        _column(f"share_beyond_{k}_sigma", REAL, "", f"entries beyond {k} std", f"超出 {k} 个标准差的元素",
                f"{normal} for a normal distribution.", f"正态分布为 {normal}。", share=True,
                short=(f"> {k} std", f"> {k} σ"))
        for k, normal in _NORMAL_BEYOND.items()
    ),
    _column("best_fit", TEXT, "", "nearest distribution", "最接近的分布",
            "Of normal, Laplace and Student-t, by Kolmogorov-Smirnov distance.",
            "正态、拉普拉斯、学生 t 中按 KS 距离最近者。"),
    _column("normal_ks", REAL, "ratio", "distance from normal", "与正态的距离",
            "Kolmogorov-Smirnov distance from the fitted normal distribution.", "与拟合正态分布的 KS 距离。",
            short=("from normal", "距正态")),
    _column("laplace_ks", REAL, "ratio", "distance from Laplace", "与拉普拉斯的距离",
            "Kolmogorov-Smirnov distance from the fitted Laplace distribution.", "与拟合拉普拉斯分布的 KS 距离。"),
    _column("student_t_ks", REAL, "ratio", "distance from Student-t", "与学生 t 的距离",
            "Kolmogorov-Smirnov distance from the fitted Student-t distribution.", "与拟合学生 t 分布的 KS 距离。"),
    _column("student_t_df", REAL, "ratio", "Student-t degrees of freedom", "学生 t 自由度",
            "Small means heavy tails; above 30 it is nearly normal.", "小则重尾；大于 30 时近乎正态。", log=True),
    _column("normal_wasserstein", REAL, "std", "Wasserstein distance from normal", "与正态的 Wasserstein 距离",
            "Mean distance by which the entries would have to move to be normal.", "各元素变为正态平均须移动的距离。"),
    _column("largest_rows", WHOLES, "", "rows of largest norm", "范数最大的行", "Their indices.", "其下标。"),
    _column("largest_row_norms", REALS, "weight", "largest row norms", "最大的行范数", "Their norms, largest first.",
            "其范数，从大到小。"),
    _column("largest_cols", WHOLES, "", "columns of largest norm", "范数最大的列", "Their indices.", "其下标。"),
    _column("largest_col_norms", REALS, "weight", "largest column norms", "最大的列范数", "Their norms, largest first.",
            "其范数，从大到小。"),
    _column("row_norm_median", REAL, "weight", "median row norm", "行范数中位数",
            "Median of the Euclidean norms of the rows (outputs).", "各行（输出）欧氏范数的中位数。", log=True),
    _column("col_norm_median", REAL, "weight", "median column norm", "列范数中位数",
            "Median of the Euclidean norms of the columns (inputs).", "各列（输入）欧氏范数的中位数。", log=True),
)

SPECTRUM = (
    _column("frobenius_norm", REAL, "weight", "Frobenius norm", "弗罗贝尼乌斯范数",
            "Square root of the sum of squares of all entries.", "全部元素平方和的平方根。", log=True,
            short=("Frobenius", "F 范数")),
    _column("spectral_norm", REAL, "weight", "spectral norm", "谱范数", "The largest singular value.", "最大奇异值。",
            log=True, short=("sigma 1", "σ₁")),
    _column("nuclear_norm", REAL, "weight", "nuclear norm", "核范数", "Sum of the singular values.", "奇异值之和。",
            log=True),
    _column("condition_number", REAL, "ratio", "condition number", "条件数", "Largest over smallest singular value.",
            "最大与最小奇异值之比。", log=True, short=("condition", "条件数")),
    _column("stable_rank", REAL, "directions", "stable rank", "稳定秩",
            "Squared Frobenius over squared spectral norm: energy counted in units of the largest direction.",
            "弗罗贝尼乌斯范数平方与谱范数平方之比：以最大方向为单位的能量。", log=True,
            short=("stable rank", "稳定秩")),
    _column("effective_rank", REAL, "directions", "effective rank", "有效秩",
            "exp of the entropy of the normalized singular values (Roy and Vetterli 2007).",
            "归一化奇异值之熵的指数（Roy 与 Vetterli 2007）。", log=True, short=("eff. rank", "有效秩")),
    _column("participation_ratio", REAL, "directions", "participation ratio", "参与率",
            "(sum of σ²)² over the sum of σ⁴.", "(Σσ²)² 与 Σσ⁴ 之比。", log=True,
            short=("particip.", "参与率")),
    *(
        _column(f"energy_rank_{percent}", WHOLE, "directions", f"directions for {percent} % of energy",
                f"占 {percent} % 能量的方向数",
                f"Fewest directions that hold {percent} % of the squared Frobenius norm.",
                f"占弗罗贝尼乌斯范数平方 {percent} % 所需的最少方向数。", log=True,
                short=(f"{percent} % energy", f"{percent} % 能量"))
        for percent in (50, 80, 90, 95, 99)
    ),
    _column("top12_share_of_singular_value_sum", REAL, "", "top 12, share of the sum of σ", "前 12 个占奇异值和之比",
            "Sum of the 12 largest singular values over the sum of all.", "最大 12 个奇异值之和占全部之和的比例。",
            share=True, short=("top 12 of Σσ", "前12 Σσ")),
    _column("top12_energy_share", REAL, "", "top 12, share of energy", "前 12 个占能量之比",
            "Squares of the 12 largest singular values over the squared Frobenius norm.",
            "最大 12 个奇异值平方和占弗罗贝尼乌斯范数平方的比例。", share=True, short=("top 12 energy", "前12 能量")),
    _column("mp_sigma", REAL, "weight", "bulk noise level", "主体噪声水平",
            "Standard deviation of the entries of the fitted noise.", "拟合噪声的元素标准差。", log=True),
    _column("mp_edge", REAL, "weight", "Marchenko-Pastur edge", "马尔琴科-帕斯图尔边界",
            "Noise of the bulk's level goes beyond it once in a hundred matrices. Each part of a fused weight has a "
            "level of its own: by its own spectrum with --split, by its entries' scale without; the spikes counted "
            "beyond the two edges may differ.",
            "与主体同水平的噪声每百个矩阵才有一次超出。融合权重的各部分各有噪声水平：加 --split 时由该部分的谱估计，"
            "不加时由其元素的尺度估计，因此两种边界之外的尖峰数可能不同。", log=True),
    _column("mp_spikes", WHOLE, "directions", "spikes beyond the bulk edge", "超出主体边界的奇异值",
            "Singular values above the Marchenko-Pastur edge: directions that noise of this size hardly ever makes.",
            "大于马尔琴科-帕斯图尔边界的奇异值个数：同等噪声几乎不会产生的方向。", short=("spikes", "尖峰数")),
    _column("gavish_donoho_threshold", REAL, "weight", "Gavish-Donoho threshold", "Gavish-Donoho 阈值",
            "Singular values below it cost more noise than they give signal (Gavish and Donoho 2014).",
            "小于它的奇异值带来的噪声多于信号（Gavish 与 Donoho 2014）。", log=True),
    _column("gavish_donoho_rank", WHOLE, "directions", "Gavish-Donoho rank", "Gavish-Donoho 秩",
            "Singular values above the optimal hard threshold.", "大于最优硬阈值的奇异值个数。",
            short=("G.-D. rank", "G-D 秩")),
    _column("alpha", REAL, "ratio", "power-law exponent α", "幂律指数 α",
            "Of the tail of the eigenvalues of WᵀW; 2 to 4 is usual for trained layers, above 6 is close to random.",
            "WᵀW 特征值尾部的指数；训练好的层通常为 2 到 4，大于 6 近乎随机。", short=("alpha", "α")),
    _column("alpha_xmin", REAL, "weight^2", "start of the power-law tail", "幂律尾部起点",
            "The eigenvalue it begins at.", "尾部开始处的特征值。", log=True),
    _column("alpha_ks", REAL, "ratio", "power-law fit distance", "幂律拟合距离",
            "Kolmogorov-Smirnov distance of the tail fit; above 0.1 the exponent says little.",
            "尾部拟合的 KS 距离；大于 0.1 时指数意义不大。"),
    _column("alpha_tail", WHOLE, "directions", "size of the power-law tail", "幂律尾部大小",
            "Eigenvalues from the start of the tail on.", "从尾部起点起的特征值个数。", log=True),
    _column("alpha_weighted", REAL, "ratio", "weighted α", "加权 α", "α times log10 of the largest eigenvalue.",
            "α 乘以最大特征值的常用对数。", signed=True),
    _column("log_norm", REAL, "ratio", "log10 of squared Frobenius norm", "弗罗贝尼乌斯范数平方的常用对数",
            "log10 of the sum of the eigenvalues of WᵀW.", "WᵀW 特征值之和的常用对数。", signed=True),
    _column("log_spectral_norm", REAL, "ratio", "log10 of squared spectral norm", "谱范数平方的常用对数",
            "log10 of the largest eigenvalue of WᵀW.", "WᵀW 最大特征值的常用对数。", signed=True),
    _column("hill_alpha", REAL, "ratio", "Hill estimate of α", "α 的 Hill 估计",
            "The tail exponent by Hill's estimator.", "用 Hill 估计量得到的尾部指数。"),
)

# What a change of a weight has beside its spectrum (sweep/delta_rows.py computes them).
CHANGE = (
    _column("allotted_rank", WHOLE, "directions", "rank allotted", "分配的秩", "Rank of the adapter's factors.",
            "适配器因子的秩。", short=("allowed", "分配秩")),
    _column("rank", WHOLE, "directions", "rank above rounding", "高于舍入的秩",
            "Directions of ΔW above the rounding floor.", "ΔW 中高于舍入下限的方向数。", short=("rank", "秩")),
    _column("share_of_rank_in_use", REAL, "", "share of the allotted rank in use", "已用秩的比例",
            "Directions that hold 99 % of the energy of ΔW over the rank of the adapter.",
            "占 ΔW 能量 99 % 的方向数与适配器秩之比。", share=True, short=("in use", "已用")),
    _column("noise_floor", REAL, "weight", "rounding floor", "舍入下限",
            "Largest singular value that rounding can have made.", "舍入所能造成的最大奇异值。", log=True,
            short=("rounding", "舍入")),
    _column("effective_rank_above_floor", REAL, "directions", "effective rank above the floor", "下限以上的有效秩",
            "Effective rank of ΔW from the singular values above the rounding floor alone.",
            "仅由高于舍入下限的奇异值得到的 ΔW 有效秩。"),
    _column("share_unchanged", REAL, "", "entries unchanged", "未变元素",
            "Share of entries that training left as they were.", "训练后未变的元素占比。", share=True),
    _column("relative_frobenius", REAL, "", "‖ΔW‖ / ‖W‖", "‖ΔW‖ / ‖W‖",
            "Frobenius norm of the change over that of the weight.", "改变量与权重的弗罗贝尼乌斯范数之比。", share=True,
            log=True, short=("|ΔW|/|W|", "|ΔW|/|W|")),
    _column("overlap_directions", WHOLE, "directions", "directions compared", "比较的方向数",
            "How many leading directions the overlaps are of.", "重叠度所比较的主方向个数。"),
    _column("overlap_left", REAL, "ratio", "overlap of ΔW with W, left", "ΔW 与 W 的左重叠度",
            "φ of the leading left directions (outputs): 0 for none, 1 for all (Hu et al. 2021, section 7.2).",
            "左主方向（输出）的 φ：0 为无，1 为完全（Hu 等 2021，7.2 节）。"),
    _column("overlap_right", REAL, "ratio", "overlap of ΔW with W, right", "ΔW 与 W 的右重叠度",
            "φ of the leading right directions (inputs): 0 for none, 1 for all (Hu et al. 2021, section 7.2).",
            "右主方向（输入）的 φ：0 为无，1 为完全（Hu 等 2021，7.2 节）。"),
    _column("amplification", REAL, "ratio", "amplification factor", "放大倍数",
            "Size of ΔW over that of W in the directions of ΔW (Hu et al. 2021, section 7.3).",
            "在 ΔW 的方向上，ΔW 与 W 大小之比（Hu 等 2021，7.3 节）。", log=True),
    _column("intruders", WHOLE, "directions", "intruder dimensions", "侵入维度",
            "Of the 10 leading directions of W + ΔW, those that resemble none of W (Shuttleworth et al. 2024).",
            "W + ΔW 的前 10 个方向中与 W 的任何方向都不相似者（Shuttleworth 等 2024）。", short=("intruders", "侵入")),
    _column("intruder_cosines", REALS, "ratio", "cosines of the leading directions", "主方向的余弦",
            "What each of the 10 has at most in common with a direction of W.", "每个方向与 W 各方向的最大余弦。"),
    _column("similarity_left", REALS, "ratio", "subspace similarity, left", "左子空间相似度",
            "φ(i, j) of the leading left directions, row by row.", "左主方向的 φ(i, j)，按行排列。"),
    _column("similarity_right", REALS, "ratio", "subspace similarity, right", "右子空间相似度",
            "φ(i, j) of the leading right directions, row by row.", "右主方向的 φ(i, j)，按行排列。"),
    _column("gradient_importance", REAL, "nats", "importance by gradients", "梯度重要性",
            "Mean of |weight times gradient of the loss| over the entries (GoRA).",
            "各元素 |权重 × 损失梯度| 的均值（GoRA）。", log=True),
    _column("second_moment", REAL, "gradient^2", "second moment of the gradient", "梯度二阶矩",
            "Mean over the matrix of AdamW's second moment of the gradient of the loss, from optimizer.pt.",
            "由 optimizer.pt 得到的 AdamW 损失梯度二阶矩在整个矩阵上的均值。", log=True),
)

SINGULAR_VALUES = (
    *KEY,
    _column("index", WHOLE, "", "index", "序号", "From 0, largest first.", "从 0 起，从大到小。", required=True),
    _column("sigma", REAL, "weight", "singular value σ", "奇异值 σ", "The singular value.", "奇异值。", log=True,
            required=True),
    _column("error_bound", REAL, "weight", "error bound", "误差界", "The true value lies within this of it.",
            "真值与之相差不超过此数。", log=True, required=True),
)

HISTOGRAMS = (
    *KEY,
    _column("bin_left", REAL, "weight", "bin from", "区间左端", "Where the bin begins.", "区间起点。", required=True),
    _column("bin_right", REAL, "weight", "bin to", "区间右端", "Where the bin ends.", "区间终点。", required=True),
    _column("count", WHOLE, "entries", "entries", "元素数", "Entries in the bin.", "区间内的元素个数。", required=True),
)

# Follow from stored columns and are drawn beside them; not stored (`figures.tables.with_outlier_ratios`).
DERIVED = (
    _column("abs_max_in_std", REAL, "ratio", "largest |weight| over std", "最大绝对值与标准差之比",
            "The entry farthest from zero over the spread.", "离零最远的元素与标准差之比。", log=True),
    _column("row_peak", REAL, "ratio", "largest over median row norm", "最大行范数与中位数之比",
            "1 where all rows (outputs) are alike.", "各行（输出）相近时为 1。", log=True),
    _column("column_peak", REAL, "ratio", "largest over median column norm", "最大列范数与中位数之比",
            "1 where all columns (inputs) are alike.", "各列（输入）相近时为 1。", log=True),
)
# fmt: on

# Name -> description, of all columns of `matrices` and of those derived from them.
COLUMNS = {column.name: column for column in (*IDENTITY, *VALUES, *SPECTRUM, *CHANGE, *DERIVED)}


def column(name: str) -> Column:
    """The column's description; one that is not listed here is described by its own name."""
    words = name.replace("_", " ")
    return COLUMNS.get(name) or _column(name, REAL, "", words, words, "A column of the table.", "表中的一列。")
