"""Words in figures: in the language in use, or in English where this machine has no font that holds Chinese.

Text stays text in the files, and whoever opens one has fonts of their own. But it is laid out here, and without a font
that knows how wide a Chinese character is, words would lie on each other.
"""

from functools import cache

import numpy as np
import pandas as pd

from glmspectra.figures.tables import has, in_layers
from glmspectra.figures.words import measured
from glmspectra.language import current, text
from glmspectra.store.columns import column

# The fonts that hold Chinese on Linux, macOS and Windows, by the names that matplotlib finds them under.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "STHeiti",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
    "SimSun",
)


@cache
def chinese_font() -> str | None:
    """The first of CHINESE_FONTS that is installed; None where there is none."""
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return next((name for name in CHINESE_FONTS if name in there), None)


def figure_language() -> str:
    """The language of figures: the one in use, English where it is Chinese and no font here holds it."""
    return current() if current() != "zh" or chinese_font() is not None else "en"


def missing_font() -> str | None:
    """One line for a person whose figures are in English for want of a font; None where all is well."""
    return text("figure-no-font") if figure_language() != current() else None


def say(message: str, /, **values: object) -> str:
    """A message of the catalogue in the language of figures."""
    return text(message, figure_language(), **values)


def axis(name: str) -> str:
    """Label and unit of a column in the language of figures."""
    return column(name).axis(figure_language())


def extremes(rows: pd.DataFrame, name: str) -> str:
    """One clause for an alternative text: where a column is largest and smallest."""
    table = in_layers(rows)
    if not has(table, name):
        return say("figure-no-values")
    numbers = pd.to_numeric(table[name], errors="coerce").astype(float).reset_index(drop=True)
    numbers = numbers[np.isfinite(numbers)]
    high, low = table.iloc[int(numbers.idxmax())], table.iloc[int(numbers.idxmin())]

    def at(row: pd.Series) -> str:
        value = measured(float(row[name]), column(name), 4)
        return say("figure-value-at", value=value, series=str(row["series"]), layer=str(int(row["layer"])))

    return say("figure-extremes", high=at(high), low=at(low))
