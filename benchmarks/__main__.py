"""`python -m benchmarks` lists the benchmarks; with names it runs those, with --all all, each in its own process.

Options that are not its own go to what is run: `python -m benchmarks sensitivity --steps 60000`. With --quick each
takes its steps once at the smallest size, and its record goes to build/benchmarks/.
"""

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import QUICK_ENVIRONMENT

HERE = Path(__file__).parent


def modules() -> dict[str, str]:
    """{name: module}: a file bench_NAME.py, or a package that can be run."""
    files = {path.stem.removeprefix("bench_"): f"benchmarks.{path.stem}" for path in sorted(HERE.glob("bench_*.py"))}
    packages = {path.parent.name: f"benchmarks.{path.parent.name}" for path in sorted(HERE.glob("*/__main__.py"))}
    return {**files, **packages}


def purpose(module: str) -> str:
    """The first line of the module's docstring, without importing it."""
    path = HERE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]


def main() -> int:
    """Lists or runs; the exit code is 1 when one that ran failed."""
    found = modules()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(found))
    parser.add_argument("--all", action="store_true", help="run every one")
    parser.add_argument("--quick", action="store_true", help="prove that they run: smallest sizes, no true figures")
    args, options = parser.parse_known_args()
    names = list(found) if args.all else args.names
    if unknown := [name for name in names if name not in found]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
    if options and not names:
        parser.error(f"{' '.join(options)}: for which benchmark?")
    if not names:
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {purpose(module)}" for name, module in found.items()))
    environment = {**os.environ, **(QUICK_ENVIRONMENT if args.quick else {})}
    failed = [
        name
        for name in names
        if subprocess.run([sys.executable, "-m", found[name], *options], check=False, env=environment).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
