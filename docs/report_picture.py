"""Photographs the verdict and the mixture of a report in both themes: docs/report_light.png and report_dark.png.

python docs/report_picture.py ado-demo/runs/natural ado-demo/runs/target        # needs Chromium
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SHOWN = "Mixture over time"  # the section that is kept
SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers of preferred colour schemes
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1160,910"]


def photograph(page: Path, scheme: str, picture: Path) -> None:
    """Writes the top of `page` in this colour scheme as a PNG."""
    options = [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", f"--screenshot={picture}"]
    subprocess.run([*CHROMIUM, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


def main(runs: list[str]) -> None:
    """Writes the report of `runs` to a folder that is then removed, and its pictures beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "ado_stream.cli", "report", *runs, "--out", folder], check=True)
        page = Path(folder) / "report.html"
        sections = re.compile(r"<section.*?</section>", re.DOTALL)
        kept = sections.sub(lambda each: each[0] if SHOWN in each[0] else "", page.read_text())
        page.write_text(re.sub(r'<nav>.*?</nav>|<div class="domains">.*?</div>', "", kept, flags=re.DOTALL))
        for scheme in SCHEMES:
            photograph(page, scheme, HERE / f"report_{scheme}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
