"""What a run did: counts, what was left out, its rows; as text, as a table in Jupyter, and for pandas."""

import html
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


_MOST_KEPT = 1000
_MOST_SHOWN = 8
_MOST_IN_HTML = 20


@dataclass(repr=False)
class Result:
    frames: int = 0
    """Images and frames that were looked at."""
    faces: int = 0
    without_face: int = 0
    """Frames; each has a row of NaN."""
    seconds: float = 0.0
    """Time of the analysis, without loading the model."""
    resumed: int = 0
    """Inputs of which the output held rows already."""
    left_out: int = 0
    """How often `skipped` got an entry."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(input, why), the first thousand."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All of them, if there is no output to write them to."""
    output: str | os.PathLike | None = None
    """The file with the rows, once it is open."""
    stopped: str | None = None
    """Why the run ended early."""
    batch_size: int = 0
    continues: bool = True
    """Whether the same command goes on where it was stopped; a camera's does not."""
    noun: str = "image"
    """frame, if a video or a camera is among the inputs."""

    def skip(self, name: str, why: str) -> None:
        self.left_out += 1
        if len(self.skipped) < _MOST_KEPT:
            self.skipped.append((name, why))

    def facts(self) -> dict[str, Any]:
        facts = {"frames": self.frames, "faces": self.faces, "frames_without_face": self.without_face}
        facts |= {"seconds": round(self.seconds, 2), "batch_size": self.batch_size, "stopped": self.stopped}
        skipped = [{"input": name, "why": why} for name, why in self.skipped]
        return {**facts, "left_out": self.left_out, "skipped": skipped}

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`, read from the output if they were written to one."""
        import pandas

        if self.output is None:
            return pandas.DataFrame(self.rows)
        from mf2face.inference.read_rows import read_rows

        return pandas.DataFrame(read_rows(self.output, points=True).columns)

    def text(self) -> str:
        speed = f", {self.frames / self.seconds:.1f} {self.noun}s a second" if self.frames and self.seconds > 0 else ""
        lines = [f"{count(self.frames, self.noun)} looked at, {count(self.faces, 'face')}{speed}"]
        if self.without_face:
            lines.append(f"{count(self.without_face, self.noun)} without a face (a row of NaN each)")
        if self.resumed:
            lines.append(f"{count(self.resumed, 'input')} stood in {self.output} already")
        if self.left_out:
            lines += [f"left out, {count(self.left_out, 'time')}:", *self._reasons()]
        if self.stopped:
            kept = "" if self.output is None else f"; the rows so far are in {self.output}"
            goes_on = ", and the same command continues there" if kept and self.continues else ""
            lines.append(f"stopped before the end: {self.stopped}{kept}{goes_on}")
        elif self.output is not None:
            lines += [f"rows: {self.output}", f"next: mf2 --picture {self.output} (contact sheet and timelines)"]
        return "\n".join(lines)

    def _reasons(self) -> list[str]:
        """The first ones; by cause, if one of them took many."""
        lines = [f"  {name}: {why}" for name, why in self.skipped[:_MOST_SHOWN]]
        more = self.left_out - len(lines)
        if more > 0:
            causes = Counter(why for _, why in self.skipped[_MOST_SHOWN:]).most_common(3)
            common = "; ".join(f"{times:,} times {why!r}" for why, times in causes if times > 1)
            lines.append(f"  and {more:,} more" + (f", such as {common}" if common else ""))
        return lines

    def __repr__(self) -> str:
        parts = [count(self.frames, self.noun), count(self.faces, "face")]
        parts += [f"{self.left_out:,} left out"] if self.left_out else []
        parts += [f"rows in {self.output}"] if self.output is not None else []
        return f"<{type(self).__name__}: {', '.join(parts)}>"

    def _repr_html_(self) -> str:
        names = [name for name in (self.rows or [{}])[0] if not name.startswith(("x_", "y_", "FaceRect"))]
        cells = [[_cell(row[name]) for name in names] for row in self.rows[:_MOST_IN_HTML]]
        more = f"<p>{len(self.rows) - len(cells):,} further rows</p>" if len(cells) < len(self.rows) else ""
        lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells]
        table = f"<table>{''.join(lines)}</table>{more}" if cells else ""
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{table}"


def _cell(value: Any) -> str:
    return (
        "" if value is None or value != value else html.escape(f"{value:.3g}" if type(value) is float else f"{value}")
    )


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
