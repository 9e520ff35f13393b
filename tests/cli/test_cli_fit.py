"""`ado-stream fit`: CSV in, table, JSON and picture out, and what it says of files it cannot use."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from ado_stream.cli.fit import read_losses
from ado_stream.cli.main import main


@pytest.fixture
def losses_csv(tmp_path):
    """300 rows of two domains with known laws; every seventh cell of the second is empty."""
    path = tmp_path / "losses.csv"
    samples = 64.0 * np.arange(1, 301)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal((2, 300)))
    web, code = (2.0 + 20.0 * samples**-0.4) * noise[0], (1.8 + 50.0 * samples**-0.6) * noise[1]
    rows = [f"{t},{web[t]:.6f},{'' if t % 7 == 3 else f'{code[t]:.6f}'}" for t in range(300)]
    path.write_text("step,web,code\n" + "\n".join(rows) + "\n")
    return path


def test_json_holds_the_laws(losses_csv, capsys):
    assert main(["fit", str(losses_csv), "--batch-size", "64", "--every", "2", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    web, code = out["domains"]
    assert out["predicted_at_samples"] == 2 * 64 * 300
    assert web["domain"] == "web"
    assert web["predicted_loss"] == pytest.approx(2.0 + 20.0 * 38400**-0.4, rel=5e-3)
    assert code["predicted_loss"] == pytest.approx(1.8 + 50.0 * 38400**-0.6, rel=5e-3)
    assert web["points"] == 150
    assert code["points"] < 150


def test_a_bound_is_said_in_words_and_start_loss_brings_it_into_the_unit_of_the_losses(tmp_path, capsys):
    """Floors of 0.7 and 0.9 lie below e^0.5, the least floor of the reference; a vocabulary of 20 begins at 3 nats."""
    path = tmp_path / "small.csv"
    samples = 64.0 * np.arange(1, 301)
    rows = [f"{n},{0.7 + 8.0 * n**-0.4:.7f},{0.9 + 9.0 * n**-0.35:.7f}" for n in samples]
    path.write_text("samples,web,code\n" + "\n".join(rows) + "\n")
    fit = ["fit", str(path), "--every", "1", "--smooth-window", "0"]
    assert main(fit) == 0
    assert "'web', 'code' may fall below the floor eps" in capsys.readouterr().out
    assert main([*fit, "--start-loss", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bounds"] == []
    assert [law["eps"] for law in found["domains"]] == pytest.approx([0.7, 0.9], rel=1e-3)


def test_table_and_picture(losses_csv, capsys, tmp_path):
    picture = tmp_path / "laws.png"
    assert main(["fit", str(losses_csv), "--batch-size", "64", "--every", "5", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "web" in out
    assert "alpha" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_has_names_of_any_characters(losses_csv, tmp_path):
    """Of two dollars matplotlib would make mathematics, and of characters without a glyph a warning."""
    losses_csv.write_text(losses_csv.read_text().replace("web,code", "$a_{$,\u4e2d\x1b", 1), encoding="utf-8")
    picture = tmp_path / "laws.svg"
    assert main(["fit", str(losses_csv), "--every", "5", "--plot", str(picture)]) == 0
    drawn = picture.read_text()
    assert "$a_{$" in drawn
    assert "\u4e2d\\x1b" in drawn


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of files."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: saved.append(figure))
    return saved


def test_the_picture_has_the_fitted_points_and_the_law_at_their_samples(losses_csv, figures, capsys):
    options = ["--batch-size", "64", "--ignore-steps", "20", "--every", "5", "--smooth-window", "0"]
    assert main(["fit", str(losses_csv), *options, "--json", "--plot", "laws.png"]) == 0
    web = json.loads(capsys.readouterr().out)["domains"][0]
    _, samples_T, losses_KT = read_losses(losses_csv, 64)
    points, law, end = figures[0].axes[0].lines
    np.testing.assert_array_equal(points.get_xdata(), samples_T[20::5])
    np.testing.assert_allclose(points.get_ydata(), losses_KT[0, 20::5], rtol=1e-15)
    curve_N = law.get_xdata()
    np.testing.assert_allclose(curve_N[[0, -1]], [64 * 21, 2 * 64 * 296], rtol=1e-12)  # rows 20 to 295 were fitted
    np.testing.assert_allclose(law.get_ydata(), web["eps"] + web["beta"] * curve_N ** -web["alpha"], rtol=1e-12)
    assert set(end.get_xdata()) == {64 * 296}
    assert figures[0].axes[0].get_xscale() == "log"


@pytest.mark.parametrize(("num_domains", "panels", "note"), [(24, 24, None), (25, 24, "The first 24 of 25 domains")])
def test_a_picture_has_no_more_panels_than_a_report(num_domains, panels, note, tmp_path, figures):
    path = tmp_path / "many.csv"
    header = ",".join(["samples", *(f"d{index}" for index in range(num_domains))])
    rows = [",".join([str(64 * t), *[f"{2 + t**-0.3:.4f}"] * num_domains]) for t in range(1, 31)]
    path.write_text("\n".join([header, *rows]))
    assert main(["fit", str(path), "--plot", str(tmp_path / "laws.png")]) == 0
    shown = [axes.get_title("left") for axes in figures[0].axes if axes.get_visible()]
    assert shown == [f"d{index}" for index in range(panels)]
    assert (figures[0].get_suptitle() or None) == note


@pytest.mark.parametrize("columns", ["20", "80"])
def test_the_table_is_whole_at_any_width_whatever_a_domain_is_called(columns, losses_csv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    text = losses_csv.read_text()
    losses_csv.write_text(text.replace("step,web,code", "step,[/web],[bold]a long name of a domain", 1))
    assert main(["fit", str(losses_csv), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    laws = found["domains"]
    assert main(["fit", str(losses_csv)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[len(laws) : len(laws) + len(found["bounds"])] == found["bounds"]
    for line, law in zip(lines[: len(laws)], laws, strict=True):
        assert line.startswith(law["domain"])
        numbers = [law[key] for key in ("eps", "beta", "alpha", "objective", "residual_scale")]
        expected = [*(f"{value:.4g}" for value in numbers), str(law["points"]), ", ".join(law["at_bound"]) or "no"]
        assert line.removeprefix(law["domain"]).split() == [*expected, f"{law['predicted_loss']:.4f}"]


def test_samples_are_read_as_they_are(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("web,samples\n3.5,100\n,200\n")
    names, samples, losses = read_losses(path, batch_size=64)
    assert names == ["web"]
    assert samples.tolist() == [100.0, 200.0]
    assert losses[0, 0] == 3.5
    assert np.isnan(losses[0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected a column"),
        ("web,code\n1,2\n", "Expected a column"),
        ("step,web\n", "0 rows"),
        ("step,web\n0,3.0,1\n", "line 2 has 3 cells"),
        ("step,web\n0,3.0\n1,abc\n", "line 3: 'abc' is not a number"),
        ("\nstep,web\n\n , \n0,3.0\n\n1,abc\n", "line 7: 'abc' is not a number"),
        ('step,"web\nof\nyears"\n0,3.0\n1\n', "line 5 has 1 cells"),
    ],
)
def test_bad_files_are_named(tmp_path, capsys, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert main(["fit", str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "bad.csv" in error


def test_missing_file_and_folder_are_named(losses_csv, tmp_path, capsys):
    assert main(["fit", str(tmp_path / "absent.csv")]) == 1
    assert "absent.csv" in capsys.readouterr().err
    assert main(["fit", str(losses_csv), "--plot", str(tmp_path / "no" / "x.png")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_rows_that_are_left_out_are_counted(tmp_path, capsys):
    rows = [f"{32 * n},{2 + 20 * (32 * n) ** -0.4}" for n in range(1, 60)]
    (tmp_path / "l.csv").write_text("\n".join(["samples,web", *rows]) + "\n")
    assert main(["fit", str(tmp_path / "l.csv")]) == 0
    assert "fitted 6 of 59 rows: " in (out := capsys.readouterr().out)
    assert "--every 10 keeps one in 10; laws of so few points are loose: lower both" in out
    assert main(["fit", str(tmp_path / "l.csv"), "--every", "1"]) == 0
    assert "fitted" not in capsys.readouterr().out
