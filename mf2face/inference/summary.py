"""What a run did, what it left out and why: for the person who waits, and for the file beside the output."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


_MOST_KEPT = 1000
_MOST_SHOWN = 8


@dataclass
class Summary:
    frames: int = 0
    """Images and frames that were looked at."""
    faces: int = 0
    without_face: int = 0
    """Frames; each has a row of NaN."""
    seconds: float = 0.0
    """Of the work itself, after the model was loaded."""
    resumed: int = 0
    """Inputs of which the output held rows already."""
    left_out: int = 0
    """How often `skipped` was told something."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(input, why), the first thousand."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """All of them, if there is no output to write them to."""
    stopped: str | None = None
    """By what, before the end."""
    batch_size: int = 0
    opened: bool = False
    """Whether the output is this run's."""
    continues: bool = True
    """Whether the same command goes on where it was stopped; a camera's does not."""

    def skip(self, name: str, why: str) -> None:
        self.left_out += 1
        if len(self.skipped) < _MOST_KEPT:
            self.skipped.append((name, why))

    def facts(self) -> dict[str, Any]:
        told = {"frames": self.frames, "faces": self.faces, "frames_without_face": self.without_face}
        told |= {"seconds": round(self.seconds, 2), "batch_size": self.batch_size, "stopped": self.stopped}
        skipped = [{"input": name, "why": why} for name, why in self.skipped]
        return {**told, "left_out": self.left_out, "skipped": skipped}

    def text(self, output: str | None = None) -> str:
        speed = f", {self.frames / self.seconds:.1f} images a second" if self.frames and self.seconds > 0 else ""
        lines = [f"{_count(self.frames, 'image')} looked at, {_count(self.faces, 'face')}{speed}"]
        if self.without_face:
            lines.append(f"{_count(self.without_face, 'image')} without a face (a row of NaN each)")
        if self.resumed:
            lines.append(f"{_count(self.resumed, 'input')} stood in {output} already")
        if self.left_out:
            lines.append(f"left out, {_count(self.left_out, 'time')}:")
            lines += self._reasons()
        if self.stopped:
            kept = f"; the rows so far are in {output}" if output and self.opened else ""
            goes_on = ", and the same command continues there" if kept and self.continues else ""
            lines.append(f"stopped before the end: {self.stopped}{kept}{goes_on}")
        elif output and self.opened:
            lines.append(f"rows: {output}")
        return "\n".join(lines)

    def _reasons(self) -> list[str]:
        """The first ones; by cause, if one of them took many."""
        lines = [f"  {name}: {why}" for name, why in self.skipped[:_MOST_SHOWN]]
        more = self.left_out - len(lines)
        if more > 0:
            causes = Counter(why for _, why in self.skipped[_MOST_SHOWN:]).most_common(3)
            told = "; ".join(f"{count:,} times {why!r}" for why, count in causes if count > 1)
            lines.append(f"  and {more:,} more" + (f", such as {told}" if told else ""))
        return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Of a library's message, which may be a page long."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]


__all__ = ["Summary", "first_line"]
