"""Plots of the report, each a string of SVG to be placed in a page.

Text stays text, so that it is small, can be searched and is drawn in the page's fonts.
Figures are as wide as a phone, so that nothing has to be shrunk there. Colours are of
Okabe and Ito's palette, told apart by colour-blind readers; line styles and markers
differ as well.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipelines.evaluation.calibration import ReliabilityBin

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#B26B00", "#00795A", "#C24E00", "#A3508A"
INK, GREY, FAINT = "#1f2933", "#5b6670", "#d5dade"
_WIDTH_INCHES = 4.9
# Any: matplotlib's own type lists every key it knows as a literal.
_STYLE: Any = {
    "date.converter": "concise",
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Dot:
    """One row of `interval_plot`: a mean with its interval; `strong` rows stand out."""

    label: str
    mean: float
    low: float
    high: float
    strong: bool = False


def interval_plot(dots: Sequence[Dot], *, title: str, x_label: str, zero: bool = False) -> str:
    """Draw means with their intervals, the first row on top.

    Parameters
    ----------
    zero
        Draw a line at zero: for differences.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(1.05 + 0.34 * len(dots))
        axes = figure.add_subplot()
        for y, dot in enumerate(dots):
            colour = BLUE if dot.strong else GREY
            axes.plot([dot.low, dot.high], [y, y], color=colour, linewidth=2.4, alpha=0.55)
            axes.plot(
                dot.mean, y, "D" if dot.strong else "o", color=colour, markersize=7, clip_on=False
            )
        axes.set_yticks(range(len(dots)), [dot.label for dot in dots])
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        if zero:
            axes.axvline(0, color=INK, linewidth=1, linestyle="--")
        else:
            axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _label(figure, title, axes, x_label, "")
        return _svg(figure, title)


def recall_plot(curves: Mapping[str, Sequence[float]], *, title: str, strong: str) -> str:
    """Draw recall@k against k for each source; `strong` names the curve that stands out."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.4)
        axes = figure.add_subplot()
        looks = cycle(
            [(VERMILION, "--", "s"), (GREEN, "-.", "^"), (ORANGE, ":", "v"), (PURPLE, "--", "o")]
        )
        for name, recall in curves.items():
            colour, line, marker = (BLUE, "-", "D") if name == strong else next(looks)
            axes.plot(
                range(1, len(recall) + 1), recall, color=colour, linestyle=line, marker=marker,
                markevery=max(1, len(recall) // 8), markersize=4.5, label=name,
                linewidth=2.2 if name == strong else 1.6,
            )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.legend(loc="best", fontsize=9)
        _label(figure, title, axes, "k: posts taken from each source", "recall@k, mean over users")
        return _svg(figure, title)


def importance_plot(shares: Mapping[str, float], *, title: str, x_label: str) -> str:
    """Draw one bar a feature, in the order given, the first on top; shares in 0 to 1."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(1.05 + 0.24 * len(shares))
        axes = figure.add_subplot()
        axes.barh(list(shares), list(shares.values()), color=BLUE, height=0.66)
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", labelsize=8.5, length=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _label(figure, title, axes, x_label, "")
        return _svg(figure, title)


def calibration_plot(
    bins: Sequence[ReliabilityBin],
    *,
    title: str,
    x_label: str = "predicted probability of relevance",
    y_label: str = "share that was relevant",
    count_label: str = "pairs",
    from_zero: bool = True,
) -> str:
    """Draw observed share against predicted probability, with the counts below.

    Parameters
    ----------
    from_zero
        Begin the axes at zero; otherwise just below the least value.
    """
    with matplotlib.rc_context(_STYLE):
        figure = _figure(4.2)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top = 1.08 * max(max(b.high, b.predicted) for b in bins)
        predicted = [b.predicted for b in bins]
        least = 0.0 if from_zero else 0.92 * min(min(b.low, b.predicted) for b in bins)
        upper.plot(
            [least, top], [least, top], color=GREY, linestyle="--", label="perfect calibration"
        )
        upper.vlines(
            predicted, [b.low for b in bins], [b.high for b in bins], color=BLUE, alpha=0.55, lw=2.4
        )
        upper.plot(
            predicted, [b.observed for b in bins], "o-", color=BLUE, linewidth=1, markersize=6,
            label="observed, with 95 % interval",
        )  # fmt: skip
        upper.set_xlim(least, top)
        upper.set_ylim(least, top)
        upper.legend(loc="upper left", fontsize=9)
        lower.vlines(predicted, 0, [b.count for b in bins], color=GREY, linewidth=4)
        lower.set_ylim(bottom=0)
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        upper.set_ylabel(y_label)
        _label(figure, title, lower, x_label, count_label)
        return _svg(figure, title)


def timeline_plot(spans: Sequence[tuple[str, datetime, datetime]], *, title: str) -> str:
    """Draw the named stretches of time as bars below each other, the first on top."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(1.0 + 0.28 * len(spans))
        axes = figure.add_subplot()
        for y, (name, start, end) in enumerate(spans):
            colour = {"history": GREY, "validation": ORANGE, "test": BLUE}.get(name, GREEN)
            bar: Any = {"width": end - start, "left": start}  # times, which its types leave out
            axes.barh(y, **bar, color=colour, height=0.62)
        axes.set_yticks(range(len(spans)), [name for name, _, _ in spans])
        axes.set_ylim(len(spans) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        _label(figure, title, axes, "time (UTC)", "")
        return _svg(figure, title)


def density_plot(groups: Mapping[str, NDArray[np.float64]], *, title: str, x_label: str) -> str:
    """Draw the density of each group's values by Gaussian kernels, the first group strongest.

    Raises
    ------
    ValueError
        If a group has fewer than two values, or all its values are equal.
    """
    from scipy.stats import gaussian_kde

    low = min(float(values.min()) for values in groups.values())
    high = max(float(values.max()) for values in groups.values())
    grid = np.linspace(low, high, 300)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.2)
        axes = figure.add_subplot()
        looks = zip((BLUE, VERMILION, GREEN), ("-", "--", ":"), strict=True)
        for (name, values), (colour, line) in zip(groups.items(), looks, strict=False):
            if len(values) < 2 or np.ptp(values) == 0:
                raise ValueError(f"{name}: found no two different values to draw a density of")
            density = gaussian_kde(values)(grid)
            axes.plot(grid, density, color=colour, linestyle=line, label=name)
            axes.fill_between(grid, density, color=colour, alpha=0.12)
            axes.axvline(float(np.median(values)), color=colour, linestyle=line, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", fontsize=9)
        _label(figure, title, axes, x_label, "density; upright lines: medians")
        return _svg(figure, title)


def map_plot(
    points: NDArray[np.float64], labels: Sequence[str], *, title: str, most: int = 8
) -> str:
    """Draw points (n, 2), each label in a colour of its own; rare labels share grey."""
    names = np.asarray(labels, dtype=object)
    frequent = [name for name, _ in Counter(labels).most_common(most)]
    with matplotlib.rc_context(_STYLE):
        figure = _figure(4.9)
        axes = figure.add_subplot()
        rest = ~np.isin(names, frequent)
        if rest.any():
            axes.scatter(points[rest, 0], points[rest, 1], s=5, color=FAINT, label="other")
        colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
        for name, colour, marker in zip(frequent, colours, cycle("osv^D"), strict=False):
            x, y = points[names == name].T
            axes.scatter(x, y, s=9, color=colour, marker=marker, label=name, lw=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, markerscale=1.8)
        _label(figure, title, axes, "", "")
        return _svg(figure, title)


def _figure(height_inches: float) -> Figure:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _label(figure: Figure, title: str, axes: Axes, x: str, y: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _svg(figure: Figure, title: str) -> str:
    """Write the figure as an SVG element whose ids are its own and whose size is the page's."""
    buffer = io.StringIO()
    # The salt makes the ids, and so the page, the same on every run.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower())
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    width = f' style="max-width: {float(size[1]) * 4 / 3:.0f}px"' if size else ""
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg role="img" aria-label="{label}"{width} '
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:width|height)="[^"]*"', "", opening)
    return opening.replace("<svg ", head, 1) + ">" + rest
