"""The chart of `tables.py`: bars of F1 an action unit, a bar a system, with standard deviations over seeds."""

from pathlib import Path

import matplotlib
from tables_report import TABLES, Runs, Value, columns_of, value_of


matplotlib.use("Agg")
from matplotlib import pyplot as plt


# Okabe and Ito's colours, told apart by colour-blind eyes; hatches tell bars apart in print.
LOOKS = (
    *(("#0072B2", ""), ("#E69F00", "//"), ("#009E73", ".."), ("#CC79A7", "xx"), ("#56B4E9", "\\\\")),
    *(("#D55E00", "++"), ("#F0E442", "oo"), ("#999999", "--")),
)


def draw(path: Path, tables: list[str], runs: Runs, data: str, seeds: int) -> bool:
    """A panel for each table of action units; False if there is nothing to draw."""
    columns = columns_of("au", runs)
    panels: dict[str, dict[str, list[Value]]] = {}
    for name in tables:
        rows = {row: title for row, title in TABLES[name].rows.items() if row in runs and "au" in TABLES[name].groups}
        values = {title: [value_of(column, runs[row]) for column in columns] for row, title in rows.items()}
        panels[name] = {title: found for title, found in values.items() if any(v.mean is not None for v in found)}
    panels = {name: bars for name, bars in panels.items() if bars}
    if not panels:
        return False
    width = max(7.0, 1.0 * len(columns))
    figure, axes = plt.subplots(len(panels), 1, figsize=(width, 3.6 * len(panels)), layout="constrained", squeeze=False)
    for axis, (name, bars) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, bars, [column.title for column in columns])
        spread = f"means and standard deviations of {seeds} seeds" if seeds > 1 else "one seed"
        unseen = any("no_positive" in value.flags for values in bars.values() for value in values)
        note = "; * no test image shows it" if unseen else ""
        axis.set_title(f"{TABLES[name].title}. F1 at threshold 0.5, {spread}; {data}{note}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    plt.close(figure)
    temporary.replace(path)
    return True


def _panel(axis: plt.Axes, bars: dict[str, list[Value]], titles: list[str]) -> None:
    width = 0.82 / len(bars)
    for number, (title, values) in enumerate(bars.items()):
        colour, hatch = LOOKS[number % len(LOOKS)]
        known = [(i, value) for i, value in enumerate(values) if value.mean is not None]
        places = [i + (number - (len(bars) - 1) / 2) * width for i, _ in known]
        means, spreads = [100 * value.mean for _, value in known], [100 * value.sd for _, value in known]
        axis.bar(places, means, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5, label=title)
        if any(spreads):
            axis.errorbar(places, means, spreads, fmt="none", ecolor="black", elinewidth=0.9, capsize=1.8)
        for place, (_, value) in zip(places, known, strict=True):
            if "no_positive" in value.flags:
                axis.annotate("*", (place, 100 * value.mean), ha="center", va="bottom")
    axis.set_xticks(range(len(titles)), titles)
    axis.set(ylabel="F1, %", ylim=(0, 105), xlim=(-0.6, len(titles) - 0.4))
    axis.set_axisbelow(True)
    axis.grid(axis="y", linewidth=0.4, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(ncols=min(len(bars), 5), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.09), frameon=False)


__all__ = ["draw"]
