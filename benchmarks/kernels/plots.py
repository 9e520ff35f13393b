"""Pictures of one run: for every operation, bars of time over floor, by case and implementation."""

from collections import defaultdict
from pathlib import Path


def draw(records: list[dict], stem: Path) -> list[Path]:
    """Writes STEM-OPERATION.png of the cases with more than one implementation; returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_case: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for record in records:
        if "share_of_floor" in record:
            by_case[record["section"], record["case"]][record["implementation"]] = 1 / record["share_of_floor"]
    operations: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (section, name), times in by_case.items():
        if len(times) > 1:
            operations[section.split()[0].strip(",")][f"{section} {name}"] = times
    paths = []
    for operation, cases in operations.items():
        names = list(dict.fromkeys(name for case in cases.values() for name in case))
        figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.25 * len(cases) * len(names)))
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            values = [case.get(name, 0.0) for case in cases.values()]
            axes.barh([j + i * height for j in range(len(cases))], values, height, label=name)
        axes.set_yticks([j + 0.4 - height / 2 for j in range(len(cases))], list(cases))
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlabel("time over the floor of this device (1 = as fast as its memory or matrix units allow)")
        axes.set_title(operation)
        axes.legend(fontsize="small")
        figure.tight_layout()
        path = stem.with_name(f"{stem.name}-{operation}.png")
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        paths.append(path)
    return paths
