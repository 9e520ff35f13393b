"""Colours distinguishable with colour blindness, labels that never overlap, number formats."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_stream.report.plot_style import (
    PALETTE,
    Plot,
    bin_means,
    bins,
    compact,
    domain_color,
    domain_colors,
    new_figure,
    png,
    shorten,
    signed,
    spread_labels,
    styled,
    svg,
    text_color,
)

# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
# Ottosson 2020, linear sRGB to OKLab.
TO_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("sight", SIGHT)
def test_palette_colours_are_distinguishable(sight):
    seen = [np.clip(np.array(SIGHT[sight]) @ linear(color), 0, 1) for color in PALETTE]
    lab = [np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ rgb) for rgb in seen]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
    # about 0.02 is a just noticeable difference in OKLab; the palette was chosen for three times that
    assert nearest > 0.058


def test_a_domain_keeps_its_colour():
    names = [f"d{i}" for i in range(60)]
    colors = domain_colors(names)
    assert colors == domain_colors(names)
    assert colors["d3"] == domain_color(3) == PALETTE[3]
    assert len(set(colors.values())) == 60


@pytest.mark.parametrize("index", range(80))
def test_text_colours_have_contrast_on_white(index):
    luminance = linear(text_color(domain_color(index))) @ [0.2126, 0.7152, 0.0722]
    assert 1.05 / (luminance + 0.05) > 3.95  # 4, less the rounding to 8 bits


@given(st.lists(st.floats(-5, 15), min_size=1, max_size=30))
def test_spread_keeps_order_distance_and_bounds(wanted):
    placed = spread_labels(wanted, 0.5, 0.0, 20.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(placed[order]) >= 0.5 - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 20 + 1e-9


def test_spread_does_not_move_labels_that_fit():
    np.testing.assert_allclose(spread_labels([1.0, 9.0, 5.0], 1.0, 0, 10), [1, 9, 5])


def test_spread_moves_as_little_as_possible():
    # two labels at one place move half a gap each: the least-squares answer
    np.testing.assert_allclose(spread_labels([5.0, 5.0], 1.0, 0, 10), [4.5, 5.5])


def test_bins_cover_everything_once():
    edges = bins(np.arange(1003), 100)
    assert (edges[0], edges[-1], len(edges)) == (0, 1003, 101)
    values = np.arange(1003.0)
    values[:20] = np.nan
    means = bin_means(values, edges)
    assert np.isnan(means[0])
    assert means[-1] == pytest.approx(values[edges[-2] :].mean())


def test_numbers_read_well():
    assert [compact(value) for value in (0, 999, 1234, 2.5e6, 3e9)] == ["0", "999", "1.23k", "2.5M", "3G"]
    assert [signed(value, ".1f") for value in (-0.04, 1.26, -3, float("nan"))] == ["+0.0", "+1.3", "−3.0", "–"]
    assert shorten("a" * 40, 10) == "aaaaaa…aaa"
    assert shorten("short") == "short"
    assert shorten("a\tb\nc$\x1b") == r"a b c\$\x1b"
    assert shorten("_a") == "\N{THIN SPACE}_a"


def test_characters_that_the_font_lacks_are_no_warning():
    with styled():
        figure = new_figure(2.0)
        figure.add_subplot().set_title("東")
        plot = Plot("a", "a", "", figure)
        assert png(plot)
        assert "東" in svg(plot)
