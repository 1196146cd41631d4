"""The one style of all figures: colors, markers, text sizes, tick labels, and how an SVG is saved.

Figures are made without pyplot: no global state, nothing to close, and they can be drawn inside a training loop.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from glmspectra.figures.svg.words import chinese_font, figure_language, say
from glmspectra.files import write_text

# Contrast to white at least 3 (WCAG 1.4.11), distance of each two at least 40 (CIE76) for normal, protan and deutan
# eyes (Machado et al. 2009): found by a search over the colors that are dark enough. The pages have the same.
COLORS = ("#0080ff", "#b28600", "#400000", "#468c69", "#000066", "#00698c", "#0000ff")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h")
DASHES = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1, 1.1)), (0, (8, 1.5)))
GREY = "#5f6670"
PALE = "#d5d9de"

# Words that may meet a line: nothing is laid behind them, since that would hide data.
HALO = {"facecolor": "none", "edgecolor": "none", "pad": 0}

# For one line per layer: cividis keeps its order in grey print and for any color blindness.
DEPTH_MAP = "cividis"
HEAT_MAP = "cividis"
SIGNED_MAP = "PuOr"

# Text is laid out with the font that comes with matplotlib, so that bytes do not depend on the machine's fonts; the
# file then names it, one of the same width, and fonts that hold Chinese, Japanese and Korean.
FONT_FAMILY = (
    "'DejaVu Sans', Verdana, 'Noto Sans CJK SC', 'Noto Sans SC', 'Source Han Sans SC', 'PingFang SC', "
    "'Microsoft YaHei', 'WenQuanYi Micro Hei', sans-serif"
)

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "glmspectra",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6.0,
    "axes.titley": 1.0,  # stated, so that no tick label has to be measured for it
    "axes.labelsize": 9.0,
    "axes.labelcolor": "#20242a",
    "axes.edgecolor": "#7a828c",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": "#4a515a",
    "ytick.color": "#4a515a",
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "hatch.linewidth": 0.6,
    "path.simplify": False,
    "text.parse_math": False,  # a run's name may hold a dollar sign
}


@contextmanager
def styled() -> Iterator[None]:
    """Everything made and saved inside has the project's style, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        chosen: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS}
        if figure_language() == "zh":  # what the first font lacks is laid out by the next
            chosen["font.family"] = ["DejaVu Sans", chinese_font()]
        chosen["backend"] = matplotlib.rcParams["backend"]
        matplotlib.rcParams.update(chosen)
        yield


@dataclass(frozen=True)
class Stroke:
    """How one series looks wherever it is drawn: color, marker and dashes, each enough to tell it by."""

    color: str
    marker: str
    dashes: object

    def line(self, **changes: object) -> dict[str, Any]:
        """Keyword arguments for `Axes.plot`."""
        look = {"color": self.color, "marker": self.marker, "linestyle": self.dashes, "markeredgewidth": 0}
        return {**look, **changes}


def strokes(names: Sequence[str]) -> dict[str, Stroke]:
    """A look for each name, by its index in the sequence; no two of the first 315 look the same."""
    return {
        name: Stroke(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(names)
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, with a canvas of its own."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def panels(
    count: int,
    columns: int,
    panel: tuple[float, float],
    *,
    left: float = 0.72,
    right: float = 0.2,
    top: float = 0.35,
    bottom: float = 0.55,
    gap: tuple[float, float] = (0.75, 0.75),
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels in rows of `columns`; every length is in inches.

    Margins are stated, not searched for by a layout engine: that takes half the time, and neighbouring figures line up.

    Returns the figure and its axes in reading order; with shared axes only the outer panels have tick labels.
    """
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    width = left + columns * panel[0] + (columns - 1) * gap[0] + right
    height = top + rows * panel[1] + (rows - 1) * gap[1] + bottom
    figure = new_figure(width, height)
    axes: list[Axes] = []
    for i in range(count):
        row, column = divmod(i, columns)
        x = left + column * (panel[0] + gap[0])
        y = bottom + (rows - 1 - row) * (panel[1] + gap[1])
        first = axes[0] if axes else None
        ax = figure.add_axes(
            (x / width, y / height, panel[0] / width, panel[1] / height),
            sharex=first if sharex else None,
            sharey=first if sharey else None,
        )
        below = i + columns < count
        ax.tick_params(labelbottom=not (sharex and below), labelleft=not (sharey and column > 0))
        axes.append(ax)
    return figure, axes


def figure_of(ax: Axes) -> Figure:
    """The figure that a pair of axes stands in; figures here have no subfigures."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of a pair of axes."""
    width, height = figure_of(ax).get_size_inches()
    box = ax.get_position()
    return box.width * width, box.height * height


def plain_number(value: float) -> str:
    """A tick label of few characters: 0.001, 0.5, 20, 20k, 1.2M; 1.5e-5 where nothing shorter serves."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}".replace("-", "\N{MINUS SIGN}")
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit and (unit > 1e3 or size >= 1e4):
            return f"{value / unit:.4g}{suffix}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def log_axis(ax: Axes, which: str, ticks: int = 5) -> None:
    """Make the x or y axis logarithmic, with few labels in plain text (a superscript would not stay text in an SVG)."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = sorted(ax.get_xlim() if which == "x" else ax.get_ylim())
    decades = np.log10(high / low) if low > 0 and np.isfinite(high) else 1.0
    steps: tuple[float, ...] = (1.0,)
    if decades < 0.75:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    elif decades < 1.6:
        steps = (1.0, 2.0, 5.0)
    elif decades < 2.6:
        steps = (1.0, 3.0)
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=ticks + 1 if decades >= 2.6 else 24))
    # Unlabelled ticks between the labels show that the axis is logarithmic.
    axis.set_minor_locator(
        LogLocator(base=10, subs=tuple(range(2, 10)), numticks=100) if decades < 4 else NullLocator()
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.set_minor_formatter(NullFormatter())


def linear_axis(ax: Axes, which: str, ticks: int = 5, *, whole: bool = False) -> None:
    """Few, plain labels on a linear axis; `whole` keeps them to integers (layers, steps, ranks)."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(ticks, integer=whole, steps=[1, 2, 2.5, 5, 10] if not whole else [1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def percent_axis(ax: Axes, which: str = "y") -> None:
    """Label shares as percentages, keeping the locator that stands."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}".replace("-", "\N{MINUS SIGN}")))


def layer_axis(ax: Axes, layers: Sequence[int], label: bool = True) -> None:
    """The x axis of everything that is drawn by depth: the layers, counted from 0, whole numbers only."""
    if len(layers):
        low, high = min(layers), max(layers)
        ax.set_xlim(low - 0.6, high + 0.6)
        room = max(3, int(inches(ax)[0] / 0.33))
        step = max(1, -(-(high - low + 1) // room))
        ax.set_xticks(range(low, high + 1, step))
    if label:
        ax.set_xlabel(say("figure-layer-from-input"))


def grid_columns(count: int) -> int:
    """Panels in a row, four at most, chosen so that the last row is as full as can be."""
    if count <= 4:
        return max(1, count)
    return 4 if count % 4 == 0 or count % 3 != 0 else 3


def key(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[str],
    *,
    top: float = 0.06,
    per_row: int = 5,
) -> None:
    """One legend for a whole figure, along its upper edge; `top` is its distance from the edge in inches.

    A handle may be a tuple, of which every member is shown.
    """
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.012, 1 - top / figure.get_figheight()),
        ncols=max(1, min(per_row, len(labels))),
        borderaxespad=0,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
        handlelength=4.2 if any(isinstance(handle, tuple) for handle in handles) else 2.6,
        columnspacing=1.6,
        labelspacing=0.35,
    )


def key_height(count: int, per_row: int = 5) -> float:
    """Inches that `key` takes for so many entries."""
    return 0.16 + 0.19 * -(-count // max(1, per_row)) if count else 0.0


def per_row_for(labels: Sequence[str], width: float) -> int:
    """How many legend entries fit side by side in so many inches."""
    longest = max((_width(label) for label in labels), default=1)
    return max(1, int((width - 0.2) / (0.72 + 0.08 * longest)))


def _width(label: str) -> int:
    """Characters of a label; a Chinese one is as wide as two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in label)


def svg_text(figure: Figure, title: str = "", description: str = "") -> str:
    """The figure as SVG text: the same figure gives the same characters, on any day and any machine.

    Text stays text. `title` and `description` become the document's `<title>` and `<desc>`, which screen
    readers announce.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The font that lays out has no Chinese; the reader's browser has, and the file names fonts for it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)
    text = text.replace('; "', '"')
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>" if title or description else ""
    style = f'<style type="text/css">text{{font-family:{FONT_FAMILY}}}</style>'
    # Right after the opening tag of the root element.
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[1]}\n {head}{style}", text, count=1)


def save_svg(figure: Figure, path: Path, title: str = "", description: str = "") -> Path:
    """Write the figure whole or not at all; the folder is made when it is not there.

    Raises StoreError when the file cannot be written.
    """
    return write_text(path, svg_text(figure, title, description))
