"""Draws the layers of packages that the contracts in pyproject.toml state: docs/house_light.svg and house_dark.svg.

python docs/house.py
"""

import tomllib
from pathlib import Path

HERE = Path(__file__).parent
WIDTH, ROW, GAP, MARGIN = 720, 34, 8, 16
COLORS = {
    "light": {"text": "#1f2328", "room": "#e8eef6", "line": "#8296b0"},
    "dark": {"text": "#e6edf3", "room": "#22303f", "line": "#6f87a5"},
}


def layers() -> list[list[str]]:
    """Rooms from the roof to the ground; an upper one imports lower ones only."""
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    packages, rooms = (each["layers"] for each in contracts if each["type"] == "layers")
    return [row.split(" | ") for row in rooms] + [[package] for package in packages if package != "ado_stream"]


def draw(theme: str) -> str:
    """The picture as SVG."""
    color, rows = COLORS[theme], layers()
    height = 2 * MARGIN + len(rows) * (ROW + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="14" text-anchor="middle" fill="{color["text"]}">',
        "<title>The packages of ado-stream: an upper row imports lower rows only</title>",
    ]
    for number, names in enumerate(rows):
        y, width = MARGIN + number * (ROW + GAP), (WIDTH - 2 * MARGIN + GAP) / len(names)
        for place, name in enumerate(names):
            x = MARGIN + place * width
            parts.append(
                f'<rect x="{x:g}" y="{y}" width="{width - GAP:g}" height="{ROW}" rx="4" fill="{color["room"]}" '
                f'stroke="{color["line"]}"/>'
                f'<text x="{x + (width - GAP) / 2:g}" y="{y + 22}">{name}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    for theme in COLORS:
        (HERE / f"house_{theme}.svg").write_text(draw(theme))
