"""Colours, type and helpers of all figures; a domain has the same colour in each.

The palette's first eight are Okabe and Ito's ("Color Universal Design", 2008) with Tol's indigo and wine; the others
were chosen greedily, each the farthest in OKLab from all before it under normal, protan, deutan and tritan sight
(Machado et al. 2009). Domain k of the corpus has colour k; past 24 the palette repeats lighter, then darker. Figures
also label domains by name, so that nothing depends on colour alone.
"""

import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ado_stream.value_types import Floats, Ints
from ado_stream.visible import visible

PALETTE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255",
    "#a4c8a4", "#ad381d", "#5c2614", "#8980ec", "#895c77", "#264aad", "#53d1e3", "#534a80",
    "#77b677", "#bf5341", "#531d5c", "#14a4c8", "#92414a", "#6e3814", "#ec7738", "#6e6eda",
)  # fmt: skip
INK, SOFT, FAINT = "#1c1f24", "#6b7280", "#d9dde3"
RUN_STYLES = tuple((color, dash) for dash in ("-", "--", ":") for color in (INK, "#8b94a3"))
RUN_MARKERS = ("o", "D", "s", "^", "v", "P")
WIDTH_IN = 10.5
MAX_POINTS, LINE_POINTS = 400, 120

RC: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#9aa2ad",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text, which a browser can search
    "svg.hashsalt": "ado-stream",
    "savefig.dpi": 170,
}


@dataclass(frozen=True)
class Plot:
    """A finished figure: file name without suffix, heading, and a caption."""

    name: str
    title: str
    caption: str
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """The context in which figures are made and saved; matplotlib's global settings do not change."""
    with rc_context(RC), warnings.catch_warnings():
        # A PNG shows a box for a character that the font lacks; the page's own text is in the browser's fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def new_figure(height_in: float, row_gap: float = 0.02) -> Figure:
    """An empty figure of the page's width with constrained layout; drawn by Agg, so no display is needed."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=ConstrainedLayoutEngine(hspace=row_gap))
    FigureCanvasAgg(figure)
    return figure


def domain_color(index: int) -> str:
    """The colour of the corpus's domain number `index`, as #rrggbb."""
    toward, share = ((0.0, 0.0), (1.0, 0.45), (0.0, 0.4))[index // len(PALETTE) % 3]
    base = to_rgb(PALETTE[index % len(PALETTE)])
    red, green, blue = (channel * (1 - share) + toward * share for channel in base)
    return to_hex((red, green, blue))


def text_color(color: str) -> str:
    """`color` darkened until it can be read on white: WCAG contrast of 4 or more."""
    rgb = np.array(to_rgb(color))
    while 1.05 / (_luminance(rgb) + 0.05) < 4:  # white's luminance is 1
        rgb = rgb * 0.95
    return to_hex(tuple(rgb.tolist()))


def _luminance(rgb: Floats) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def tag(artists: Iterable[Artist] | Artist, name: str, colors: dict[str, str], label: str = "") -> None:
    """Marks artists as those of a domain, for the page's script: hover shows `label`, else the value drawn there."""
    for artist in [artists] if isinstance(artists, Artist) else artists:
        artist.set_gid(f"d{list(colors).index(name)}|{label}" if name in colors else f"d|{label}")


def domain_colors(names: Sequence[str]) -> dict[str, str]:
    """{domain: colour} in the corpus's order."""
    return {name: domain_color(index) for index, name in enumerate(names)}


def run_style(index: int) -> dict[str, Any]:
    """Line colour and dash of run number `index`: runs differ by grey and dash, domains by hue."""
    color, dash = RUN_STYLES[index % len(RUN_STYLES)]
    return {"color": color, "linestyle": dash}


def spread_labels(wanted_y: Sequence[float], gap: float, low: float, high: float) -> Floats:
    """Positions near `wanted_y`, in the same order, at least `gap` apart and inside [low, high] while there is room.

    The least-squares solution (pool adjacent violators on positions minus their rank's offset).
    """
    wanted = np.asarray(wanted_y, dtype=np.float64)
    if not wanted.size:
        return wanted
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order = np.argsort(wanted, kind="stable")
    offset = gap * np.arange(len(wanted))
    # minus the offset of its rank a position need only not decrease: isotonic regression, whose solution pools
    # neighbours that are out of order into a block at their mean
    blocks: list[list[float]] = []  # [mean, size]
    for value in np.clip(wanted[order], low, high) - offset:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    flat = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    placed = np.empty_like(wanted)
    placed[order] = np.clip(flat, low, high - offset[-1]) + offset
    return placed


def shorten(name: str, length: int = 22) -> str:
    """`name` for a figure: its middle left out when it is longer than `length`, nothing invisible, no mathematics.

    After a thin space where it begins with an underscore: legends leave such labels out.
    """
    name = visible(name).replace("\n", " ").replace("\t", " ")
    if len(name) > length:
        head = (length - 1) * 2 // 3
        name = f"{name[:head]}…{name[-(length - 1 - head) :]}"
    return ("\N{THIN SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def bins(step_S: Ints, num: int = MAX_POINTS) -> Ints:
    """Edges (indices into S) of at most `num` equal groups of consecutive records."""
    edges: Ints = np.unique(np.linspace(0, len(step_S), min(num, len(step_S)) + 1).astype(np.int64))
    return edges


def bin_means(values_S: Floats, edges: Ints) -> Floats:
    """The mean of the finite values in every group along the first axis; NaN for a group without any."""
    finite = np.isfinite(values_S)
    sums = np.add.reduceat(np.where(finite, values_S, 0.0), edges[:-1], axis=0)
    counts = np.add.reduceat(finite.astype(np.float64), edges[:-1], axis=0)
    means: Floats = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def plot_binned(axes: Axes, step_S: Ints, values_S: Floats, **line: Any) -> Floats:
    """Draws means over LINE_POINTS groups of consecutive steps; returns them."""
    edges = bins(step_S, LINE_POINTS)
    means_S = bin_means(values_S, edges)
    axes.plot(bin_means(step_S.astype(np.float64), edges), means_S, **line)
    return means_S


def png(plot: Plot) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    plot.figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(plot: Plot) -> str:
    """The figure as an SVG element whose groups have data-d (number of the domain, "" for none) and data-label where
    they were tagged, and data-axes: [left, right, bottom, top] of the axes on the page and in data, the x label, the
    axes' label ("log2" where y is a logarithm).
    """
    figure = plot.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # where the axes are now is where the SVG draws them
    width, height = 72 * figure.get_size_inches()
    for axes in figure.axes:
        x0, y0, x1, y1 = axes.get_position().extents
        place = [round(value, 2) for value in (x0 * width, x1 * width, (1 - y0) * height, (1 - y1) * height)]
        axes.set_gid(
            "a|" + json.dumps([*place, *axes.get_xlim(), *axes.get_ylim(), axes.get_xlabel(), axes.get_label()])
        )
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)  # numbers of artists: not unique on the page
    text = re.sub(
        r"""<g id=(["'])d(\d*)\|(.*?)\1""",
        lambda found: "<g data-d={0}{1}{0} data-label={0}{2}{0}".format(found[1], found[2], visible(found[3])),
        text,
        flags=re.DOTALL,
    )
    return re.sub(r"""<g id=(["'])a\|(.*?)\1""", r"<g data-axes=\1\2\1", text)


def label_rows(axes: Axes, y: Sequence[float], names: Sequence[str], colors: dict[str, str]) -> None:
    """Domain names as tick labels at `y`, each in its colour; names without one in ink."""
    axes.set_yticks(y, [shorten(name, 26) for name in names])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(text_color(colors.get(name, INK)))
        tag(tick, name, colors)
    axes.tick_params(axis="y", length=0)


def largest(share_K: Floats, most: int) -> tuple[Ints, str]:
    """Ascending indices of the `most` largest shares, and a caption's sentence where some are left out."""
    index = np.sort(np.argsort(-np.nan_to_num(share_K), kind="stable")[:most])
    left_out = len(index) < len(share_K)
    return index, f" The {len(index)} largest of {len(share_K)} domains." if left_out else ""


def signed(value: float, form: str) -> str:
    """`value` with a true sign and no negative zero: "+0.3", "−1.2"; a dash when it is not finite."""
    return f"{value:+z{form}}".replace("-", "−") if np.isfinite(value) else "–"


def thousands(axis: Axis) -> None:
    """Labels a linear axis as 10k, 2.5M."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def compact(value: float) -> str:
    """1234567 as '1.23M'; three significant digits."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def label_lines(axes: Axes, x: float, ends: dict[str, float], colors: dict[str, str], height: float) -> None:
    """Writes every name at the right of `axes` beside its line's end, moved apart so that none overlap.

    `height`: a label's height in points of the axes' y unit.
    """
    low, high = axes.get_ylim()
    names = [name for name, end in ends.items() if np.isfinite(end)]
    placed = spread_labels([ends[name] for name in names], height, low + height / 2, high - height / 2)
    span = axes.get_xlim()[1] - axes.get_xlim()[0]
    for name, y in zip(names, placed, strict=True):
        line = axes.plot([x, x + 0.012 * span], [ends[name], y], color=colors[name], lw=0.8, clip_on=False)
        text = axes.text(x + 0.018 * span, y, shorten(name), color=text_color(colors[name]), va="center", fontsize=8.5)
        tag([*line, text], name, colors)
