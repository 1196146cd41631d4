"""Distributions of the weights: a ridge of histograms by depth for each matrix."""

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.interpolate import PchipInterpolator

from glmspectra.figures.svg import style
from glmspectra.figures.svg.layers import depth_bar, slug
from glmspectra.figures.svg.words import say
from glmspectra.figures.tables import Tables, central_range, in_layers, series_order, value_density

BINS = 90
MOST_PANELS = 16


def draw_value_ridges(run: Tables) -> Figure | None:
    """Small multiples: a panel for each series, in it one density a layer, the first layer at the bottom.

    Every layer has the same bins, so shapes compare; each density is scaled by the panel's highest. Only the middle
    99.8 % are shown, tails belong to the outlier figure. None when no histogram was stored. `run` went through `pick`.
    """
    rows = in_layers(run.histograms)
    if not len(rows):
        return None
    order = series_order(run.histograms)[:MOST_PANELS]
    columns = style.grid_columns(len(order))
    layers = sorted(set(rows["layer"]))
    tall = min(6.5, max(1.8, 0.15 * len(layers) + 0.6))
    figure, axes = style.panels(
        len(order), columns, (2.18, tall), left=0.62, right=0.95, top=0.34, bottom=0.55, gap=(0.28, 0.85)
    )
    shade = Normalize(layers[0], max(layers[-1], layers[0] + 1))
    colors = matplotlib.colormaps[style.DEPTH_MAP]
    groups = dict(iter(rows.groupby(["series", "layer"], sort=False)))
    for i, (ax, name) in enumerate(zip(axes, order, strict=True)):
        densities = {layer: groups[name, layer] for layer in layers if (name, layer) in groups}
        step = _draw_ridges(ax, name, densities, layers, lambda layer: colors(shade(layer)))
        style.linear_axis(ax, "x", 3)
        every = max(1, -(-len(layers) // 14))
        ax.set_yticks([j * step for j in range(0, len(layers), every)], [str(layer) for layer in layers[::every]])
        ax.grid(False, axis="x")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0, labelleft=i % columns == 0)
        ax.set_title(name, fontsize=8.5)
        ax.set_xlabel(say("figure-weight"), fontsize=8)
        if i % columns == 0:
            ax.set_ylabel(say("figure-layer"))
    depth_bar(figure, shade)
    return figure


def _draw_ridges(
    ax: Axes, name: str, histograms: dict[int, pd.DataFrame], layers: list[int], color: Callable[[int], Any]
) -> float:
    """One panel: the density of each layer over its foot; returns how far apart the feet are."""
    binned = {layer: value_density(histogram) for layer, histogram in histograms.items()}
    low, high = central_range((edges, counts) for edges, _, counts in binned.values())
    cut = np.linspace(low, high, BINS + 1)
    middle = (cut[:-1] + cut[1:]) / 2
    merged = {
        layer: rebin(edges, counts, cut) / (max(counts.sum(), 1) * (cut[1] - cut[0]))
        for layer, (edges, _, counts) in binned.items()
    }
    highest = max((density.max() for density in merged.values()), default=1.0) or 1.0
    step = 1.0 if len(layers) > 1 else 0.0
    for layer in reversed(list(merged)):
        foot = layers.index(layer) * step
        line = foot + 3.2 * merged[layer] / highest
        order = 2 + 2 * (len(layers) - foot)
        ax.fill_between(middle, foot, line, color=color(layer), alpha=0.75, linewidth=0, zorder=order)
        gid = slug(f"ridge-{name}-layer-{layer}")
        ax.plot(middle, line, color="white", linewidth=0.8, zorder=order + 1, gid=gid)
    ax.set_xlim(low, high)
    ax.set_ylim(-0.2, (len(layers) - 1) * step + 3.5)
    return step


def rebin(edges: np.ndarray, counts: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Counts of a histogram in other bins: (len(cut) - 1,) float64, with the same total inside the range of `cut`.

    The stored bins are narrow at zero and wide far out. The cumulative count is interpolated by a monotone cubic
    (Fritsch & Carlson 1980), so no count is lost, none is negative, and wide bins do not show as steps.
    """
    cumulative = PchipInterpolator(edges, np.concatenate([[0.0], np.cumsum(counts)]))
    shares: np.ndarray = np.diff(cumulative(np.clip(cut, edges[0], edges[-1])))
    return shares.clip(0.0)
