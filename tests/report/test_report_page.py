"""The page is self-contained, has every figure, and is written from short and broken records too."""

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.text import Text

from ado_stream.cli.main import main
from ado_stream.errors import StorageError
from ado_stream.record import RunRecord
from ado_stream.report import report_page
from ado_stream.report.plot_style import domain_colors, styled
from ado_stream.report.run_data import load_runs

SEVEN = ["python", "c-headers", "docs", "readmes", "licences", "json", "tables"]


def names_of(num):
    return SEVEN[:num] if num <= 7 else [f"domain-{index:03}" for index in range(num)]


class Checker(HTMLParser):
    """Collects what a browser would load, the figures, and tags that were not closed."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        self.loads += [found[key] for key in ("src", "href", "xlink:href", "srcset", "data") if found.get(key)]
        if tag not in ("input", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(path):
    """(the document, the number of its figures)"""
    checker = Checker()
    document = path.read_text()
    checker.feed(document)
    assert checker.open == []
    assert checker.tags.count("script") == 1
    assert document.count("</script>") == 1
    assert all(load.startswith("#") for load in checker.loads)
    assert document.count("url(") == document.count("url(#")
    assert "@import" not in document
    assert "<!--" not in document
    return document, checker.tags.count("figure")


@pytest.mark.parametrize("num", [7, *(pytest.param(num, marks=pytest.mark.slow) for num in (1, 100))])
def test_two_runs_side_by_side(simulate, tmp_path, num):
    batch = 32 if num < 50 else 256
    for policy in ("ado", "natural"):
        simulate(tmp_path / policy, names_of(num), policy=policy, steps=150, batch=batch)
    path = report_page.write_report([tmp_path], tmp_path / "out")
    document, num_figures = check_page(path)
    assert num_figures == 6
    expected = {"validation", "mixture", "laws-ado", "selection-ado", "progress", "throughput"}
    assert {file.stem for file in path.parent.glob("*.png")} == expected
    assert "ado against natural" in document
    assert "ends lower than natural on" in document
    assert "Policy health: ado" in document
    assert "Policy health: natural" not in document
    assert "−1.23 %" in document
    assert "4.56 %" in document
    assert all(name in document for name in names_of(num))
    assert len(document) < 4e6
    assert not list(path.parent.glob("*.tmp"))


def test_natural_run_alone(simulate, tmp_path):
    path = report_page.write_report([simulate(tmp_path / "n", SEVEN, policy="natural", steps=40)], tmp_path)
    document, _ = check_page(path)
    assert "No comparison" in document
    assert "Scaling laws" not in document
    assert "mixture is constant" in document


@pytest.mark.slow
def test_broken_losses_and_laws(simulate, tmp_path):
    path = report_page.write_report([simulate(tmp_path / "ado", SEVEN, steps=200, broken=True, planned=500)], tmp_path)
    document, _ = check_page(path)
    assert "stopped at step 200 of 500" in document
    assert "0 of 4" in document  # the domain without a law: none of its refits was valid
    assert "Refits: 1; failed: 1." in document
    assert not re.search(r"\b(nan|inf)\b", document.lower())


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_very_few_steps(tmp_path, steps):
    with RunRecord(tmp_path / "run") as record:
        record.write("run", version=1, domains=["a", "b"], policy="ado", prior=[0.5, 0.5])
        for step in range(steps):
            record.write("step", step=step, loss=3.0, domain_loss=[3.0, None], samples=[4, 0], mixture=[0.5, 0.5])
    check_page(report_page.write_report([tmp_path / "run"], tmp_path / "out"))


def test_everything_non_finite(tmp_path):
    with RunRecord(tmp_path / "run") as record:
        record.write("run", version=1, domains=["a", "b"], policy="ado", prior=[0.5, 0.5], global_batch_size=4)
        nothing = [float("nan")] * 2
        for step in range(30):
            record.write("step", step=step, loss=float("inf"), domain_loss=nothing, samples=[2, 2], mixture=[0.5, 0.5])
        record.write("fit", step=9, n=40, log_beta=nothing, log_eps=nothing, alpha=nothing, valid=[False, False])
        record.write("eval", step=30, split="val", loss=float("nan"), domain_loss=nothing, domain_tokens=[9, 9])
    check_page(report_page.write_report([tmp_path / "run"], tmp_path / "out"))


@pytest.mark.slow
def test_runs_over_different_domains(simulate, tmp_path):
    simulate(tmp_path / "ado", SEVEN[:4], steps=60)
    simulate(tmp_path / "natural", SEVEN[2:], policy="natural", steps=60)
    document, _ = check_page(report_page.write_report([tmp_path], tmp_path / "out"))
    assert "of 2 domains" in document  # those that both runs know


def test_what_a_terminal_obeys_or_a_reader_cannot_see_is_spelled_out(simulate, tmp_path):
    """ESC, OSC 52, a mark of direction, C1, and what figures would take for mathematics, in names and in the path."""
    names = ["a\x1b]52;c;aGk=\x07", "b\u202egnp", "c\x9b31m", r"d $\frac$ e"]
    run = simulate(tmp_path / "run\x1b[31m", names, steps=120)
    document, _ = check_page(report_page.write_report([run], tmp_path / "out"))
    assert not set(document) & set("\x1b\x07\x9b\u202e")
    for spelled in (r"a\x1b]52;c;aGk=\x07", r"b\u202egnp", r"c\x9b31m", r"d $\frac$ e", r"run\x1b[31m"):
        assert spelled in document


def test_names_are_escaped(simulate, tmp_path):
    names = ["<script>alert(1)</script>", 'a"b&c', "$x^2$ {y}", "</style><!-- ]]>"]
    document, _ = check_page(report_page.write_report([simulate(tmp_path / "ado", names, steps=60)], tmp_path))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in document


def test_unwritable_folder_raises_storage_error(simulate, tmp_path):
    run = simulate(tmp_path / "ado", SEVEN, steps=5)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write the report"):
        report_page.write_report([run], tmp_path / "file" / "out")


def texts_of(figure):
    """Visible texts of a drawn figure with their boxes; ticks outside of the axes' limits are not drawn."""
    figure.canvas.draw()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = axis._update_ticks()
            hidden |= {id(t) for tick in axis.get_major_ticks() if tick not in drawn for t in tick.findobj(Text)}
            hidden |= {id(t) for tick in axis.get_minor_ticks() if tick not in drawn for t in tick.findobj(Text)}
        if not axes.axison:
            hidden |= {id(text) for text in axes.findobj(Text)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text.get_text(), text.get_window_extent()


@pytest.mark.parametrize("num", [7, *(pytest.param(num, marks=pytest.mark.slow) for num in (2, 22, 100))])
def test_texts_do_not_overlap(simulate, tmp_path, num):
    batch = 32 if num < 50 else 256
    for policy in ("ado", "natural"):
        simulate(tmp_path / policy, names_of(num), policy=policy, steps=150, batch=batch)
    runs = load_runs([tmp_path])
    with styled():
        for plot in report_page._plots(runs, domain_colors(runs[0].domains)):
            boxes = list(texts_of(plot.figure))
            width, height = plot.figure.canvas.get_width_height()
            for text, box in boxes:
                assert box.x0 >= -1, (plot.name, text)
                assert box.x1 <= width + 1, (plot.name, text)
                assert box.y0 >= -1, (plot.name, text)
                assert box.y1 <= height + 1, (plot.name, text)
            for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
                across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
                along = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
                # boxes include the line's leading: up to a fifth of a line may be shared without ink touching
                assert across <= 1 or along <= 0.2 * min(box_a.height, box_b.height), (plot.name, a, b)


def test_domains_have_one_colour_in_every_figure(simulate, tmp_path):
    for policy in ("ado", "natural"):
        simulate(tmp_path / policy, SEVEN, policy=policy, steps=150)
    runs = load_runs([tmp_path])
    colors = domain_colors(runs[0].domains)
    with styled():
        plots = {plot.name: plot.figure for plot in report_page._plots(runs, colors)}
    lines = {line.get_color() for line in plots["mixture"].axes[1].lines}
    assert set(colors.values()) <= lines
    bars = {tuple(np.round(patch.get_facecolor()[:3], 3)) for patch in plots["selection-ado"].axes[1].patches}
    expected = {tuple(round(int(c[i : i + 2], 16) / 255, 3) for i in (1, 3, 5)) for c in colors.values()}
    assert bars == expected


@pytest.mark.slow
def test_command_line(simulate, tmp_path, capsys):
    for policy in ("ado", "natural"):
        simulate(tmp_path / "runs" / policy, SEVEN, policy=policy, steps=40)
    assert main(["report", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(tmp_path / "runs" / "report" / "report.html")
    assert len(answer["comparisons"]) == 1
    assert main(["report", str(tmp_path / "runs" / "ado"), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()
    assert "report: " in capsys.readouterr().out
