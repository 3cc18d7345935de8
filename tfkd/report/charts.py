"""Curves as inline SVG, in the colours and the type of the page."""

import io
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: How many colours the style sheet has, `--series-0` and on; then dashes tell lines apart.
COLOURS = 8
DASHES = {"solid": "", "dashed": "6 3", "dotted": "2 2", "dashdot": "6 2 2 2"}

# Matplotlib knows no variables of a style sheet: it draws in these, which are then replaced.
_TEXT, _GRID, _NEUTRAL = "#010101", "#010102", "#010103"
_SERIES = [f"#0102{number:02x}" for number in range(COLOURS)]
_VARIABLES = {
    _TEXT: "var(--text)",
    _GRID: "var(--line)",
    _NEUTRAL: "var(--muted)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _LINK)

# Where the values of a loss span more than this, the axis is logarithmic.
_LOGARITHMIC = 20


class Line:
    """A line of a chart.

    Args:
        label: String.
        values: Array `(runs, epochs)`.
        number: Integer, which of the colours and dashes; None for a neutral one, as of a teacher.
    """

    def __init__(self, label, values, number):
        self.label = label
        self.values = np.atleast_2d(values)
        self.number = number

    @property
    def colour(self):
        """The colour's name in the style sheet."""
        return "--muted" if self.number is None else f"--series-{self.number % COLOURS}"

    @property
    def dash(self):
        """Which of the `DASHES`."""
        if self.number is None:
            return "dashed"
        return list(DASHES)[self.number // COLOURS % len(DASHES)]

    @property
    def dash_pattern(self):
        """The dashes as SVG has them."""
        return DASHES[self.dash]


class Charts:
    """Draws charts, whose parts have ids that no other chart of the page has."""

    def __init__(self):
        self._count = 0

    def draw(self, title, lines, share=False):
        """Draws values over the epochs: the mean of the runs, within one standard deviation.

        Args:
            title: String.
            lines: List of `Line`.
            share: Boolean, whether the values are shares, written in percent.

        Returns:
            The SVG as markup.
        """
        self._count += 1
        settings = {
            "svg.fonttype": "none",
            "svg.hashsalt": "tfkd",
            "axes.unicode_minus": False,
            "font.size": 10,
        }
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=(4.4, 2.7), layout="constrained")
            FigureCanvasSVG(figure)
            axis = figure.add_subplot()
            for line in lines:
                _draw_line(axis, line)
            _style(axis, lines, share)
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return _inline(file.getvalue(), f"chart{self._count}", _in_words(title, lines, share))


def _draw_line(axis, line):
    colour = _NEUTRAL if line.number is None else _SERIES[line.number % COLOURS]
    epochs = np.arange(1, line.values.shape[1] + 1)
    mean = line.values.mean(0)
    # A single epoch makes no line.
    marker = "o" if len(epochs) == 1 else None
    axis.plot(
        epochs, mean, color=colour, linestyle=line.dash, linewidth=1.8, marker=marker, markersize=4
    )
    if len(line.values) > 1:
        deviation = line.values.std(0, ddof=1)
        axis.fill_between(
            epochs, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0
        )


def _style(axis, lines, share):
    means = np.concatenate([line.values.mean(0) for line in lines])
    means = means[np.isfinite(means)]
    if share:
        axis.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None, symbol=" %"))
        low, high = axis.get_ylim()
        if means.min() == means.max():
            low, high = 0, 1
        # No axis goes on where no share is; the lines at its ends stay visible.
        beyond = 0.03 * (high - low)
        axis.set_ylim(max(low, -beyond), min(high, 1 + beyond))
    elif len(means) and means.min() > 0 and means.max() > _LOGARITHMIC * means.min():
        axis.set_yscale("log")
        decades = np.log10(means.max() / means.min())
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda number, _: f"{number:g}"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        # The band of two runs may reach below zero, which would stretch the axis.
        axis.set_ylim(means.min() / 1.5, means.max() * 1.5)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch", color=_TEXT)
    axis.tick_params(which="both", color=_GRID, labelcolor=_TEXT)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)


def _in_words(title, lines, share):
    """Says what a chart shows to those who cannot see it."""
    epochs = max(line.values.shape[1] for line in lines)
    last = [
        f"{line.label} {line.values[:, -1].mean():{'.1%' if share else '.4g'}}" for line in lines
    ]
    return f"{title} over {epochs} epochs. After the last one: {', '.join(last)}."


def _inline(text, prefix, words):
    """Makes a part of the page of an SVG file."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            # Its metadata, and its style, which would hold for the whole page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == f"{{{_LINK}}}href":
                value = value.replace("#", f"#{prefix}-")
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
                for colour, variable in _VARIABLES.items():
                    value = re.sub(colour, variable, value, flags=re.IGNORECASE)
            element.set(name, value)
        if element.tag == f"{{{_SVG}}}text":
            # The page has a typeface of its own.
            style = re.sub(r"font: [^;]*;", "", element.get("style", ""))
            element.set("style", f"font-size: 10px; {style}")
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.set("class", "chart")
    root.set("role", "img")
    root.set("aria-label", words)
    return Markup(ElementTree.tostring(root, encoding="unicode"))
