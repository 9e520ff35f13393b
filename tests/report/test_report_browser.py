"""The page in headless Chromium: values under the pointer, one domain alone, sorted tables, both themes, two widths."""

import re

import pytest

from ado_stream.report import report_page
from tests.browser import open_browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = ["<b>json</b>", 'a"b&c', "<img src=x onerror=alert(1)>"]
NAMES = ["python", "docs", "tables", *HOSTILE, "readmes"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The URL of the page of three runs, two of which differ in their seed."""
    from tests.report.conftest import write_simulated

    folder = tmp_path_factory.mktemp("runs")
    for label, policy, seed in (("ado", "ado", 7), ("natural", "natural", 7), ("again", "natural", 8)):
        write_simulated(folder / label, NAMES, policy=policy, steps=120, seed=seed, planned=120)
    return report_page.write_report([folder], folder / "report").as_uri()


def tip(page):
    return page.run("(t => t.hidden ? null : t.textContent)(document.getElementById('tip'))")


def opacity(page, selector):
    return float(page.run(f"getComputedStyle(document.querySelector({selector!r})).opacity"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 400])
def test_one_domain_alone_in_every_figure_and_table(browser, report, width, dark):
    browser.open(report, width, dark)
    figures = "[...document.querySelectorAll('figure svg')].map(svg => svg.querySelectorAll('[data-d=\"1\"]').length)"
    assert sum(number > 0 for number in browser.run(figures)) == 4  # validation, mixture, laws, samples drawn
    for shown in (0.07, 1.0):  # alone; and all again
        browser.click('.domains button[data-d="1"]')
        for figure in ("Validation-loss-side-by-side", "Mixture-over-time", "Loss-per-domain-law-and-forecast-ado"):
            assert opacity(browser, f'#s-{figure} svg [data-d="0"]') == shown
            assert opacity(browser, f'#s-{figure} svg [data-d="1"]') == 1.0
        assert opacity(browser, '#s-Domains tr[data-d="0"]') == (0.3 if shown < 1 else 1.0)
    browser.click('#s-Domains tr[data-d="2"] td')
    assert opacity(browser, '#s-Mixture-over-time svg [data-d="1"]') == 0.07
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.querySelector('figure svg').getBoundingClientRect().width") >= 700
    paper = [int(part) for part in re.findall(r"\d+", browser.run("getComputedStyle(document.body).backgroundColor"))]
    assert (max(paper) < 60) == dark
    assert ("invert" in browser.run("getComputedStyle(document.querySelector('figure svg')).filter")) == dark
    assert browser.errors == []
    assert {url for url in browser.requests if not url.startswith("file:///")} == set()


def test_values_under_the_pointer(browser, report):
    """An area's height, a bar's label, a line's value; a hostile name is text."""
    browser.open(report)
    browser.move('#s-Mixture-over-time svg [data-d="0"] use')
    found = re.fullmatch(r"python: ([\d.]+) at step (\d+)", tip(browser))
    assert found, tip(browser)
    assert 0 < float(found[1]) < 100
    browser.move('#s-Samples-drawn-against-the-mixture-ado svg [data-label$=" samples"][data-d="5"]')
    assert re.fullmatch(re.escape(HOSTILE[2]) + r": 0\.\d+ samples", tip(browser))
    browser.move("#s-How-to-repeat-it pre")
    assert tip(browser) is None
    assert browser.run("document.querySelectorAll('img, main b').length") == 0
    assert browser.errors == []


def test_tables_are_sorted_by_a_click_and_totals_stay_last(browser, report):
    browser.open(report)
    headers = "[...document.querySelectorAll('#s-Domains th')].map(cell => cell.textContent)"
    number = browser.run(headers).index("train tokens")
    column = f"[...document.querySelectorAll('#s-Domains tbody tr')].map(row => row.cells[{number}].textContent)"
    before = browser.run(column)
    for descending in (True, False):
        browser.click(f"#s-Domains th:nth-child({number + 1})")
        sizes = browser.run(column)
        assert sizes[-2:] == before[-2:] == ["", ""]
        found = [float(text[:-1]) * {"k": 1e3, "M": 1e6}[text[-1]] for text in sizes[:-2]]
        assert found == sorted(found, reverse=descending)
        assert sorted(sizes) == sorted(before)


def test_a_hundred_domains_are_found_by_a_search(browser, tmp_path):
    from tests.report.conftest import write_simulated

    names = [f"domain-{number:03}" for number in range(100)]
    run = write_simulated(tmp_path / "ado", names, steps=60, batch=256)
    path = report_page.write_report([run], tmp_path / "report")
    assert path.stat().st_size < 4e6
    browser.open(path.as_uri(), 400)
    shown = (
        "[...document.querySelectorAll('button[data-d]')].filter(each => !each.hidden).map(each => each.textContent)"
    )
    assert len(browser.run(shown)) == 100
    browser.run("(s => { s.value = 'N-04'; s.dispatchEvent(new Event('input', {bubbles: true})) })(search)")
    assert browser.run(shown) == names[40:50]
    assert "76 smaller ones" in browser.run("document.querySelector('#s-Mixture-over-time').textContent")
    assert browser.errors == []
