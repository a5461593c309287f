"""Damaged inputs through the doors that people use: a right answer or a refusal that names what is wrong, in bounded
time and memory. `python tests/test_fuzz.py [--kind NAME] [--seed N] [--case TEXT]` prints the same table.

Each kind runs in its own process, so that a hang or a crash costs one input, and its memory can be measured.
"""

import argparse
import gc
import math
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_inputs import Case
from fuzz_kinds import KINDS, Answer


MOST_SECONDS, MOST_MEGABYTES, LEAST_INPUTS = 30, 600, 1500
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
PRELOAD = ["mf2face.inference.analyze", "mf2face.data.build.mfa", "mf2face.training.stores", "fuzz_kinds"]
VERDICTS = ("accepted", "refused", "silent", "unnamed", "hang")


def is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, int | float) and isinstance(other, int | float) and abs(one - other) <= 2e-6
    return one == other


def is_named(message: str, names: tuple[str, ...]) -> bool:
    """Whether a message names the file or the field, without the words of a library's own crash."""
    crash = ("Traceback (most", "OpenCV(", "Assertion failed")
    return any(name.lower() in message.lower() for name in names) and not any(word in message for word in crash)


def judge(answer: Callable[[Any], Answer], case: Case, given: Any) -> tuple[str, str]:
    """One of accepted, refused, unnamed and silent; and what was said."""
    try:
        found = answer(given)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        is_ours = type(error).__module__.split(".")[0] in ROOMS
        allowed = isinstance(error, ValueError | OSError | TypeError | ImportError) or is_ours
        named = allowed and is_named(str(error), case.names)
        verdict = "silent" if case.rule == "accept" else "refused" if named else "unnamed"
        return verdict, f"{type(error).__name__}: {error}"
    said = " | ".join(found.reasons)
    if not all(is_named(reason, (*case.names, "no face", "weights are damaged")) for reason in found.reasons):
        return "unnamed", said
    if not is_finite(found.value):  # a row whose numbers are missing gives a reason
        return "refused" if said else "silent", said or f"not finite: {str(found.value)[:200]}"
    if case.rule != "finite" and case.expected is not None and is_same(found.value, case.expected):
        return "accepted", said
    if said and case.rule != "accept":
        return "refused", said
    if case.rule == "finite":
        return "accepted", said
    return "silent", f"got {str(found.value)[:300]}, expected {str(case.expected)[:300]}"


def _megabytes(name: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def _work(pipe: Any, name: str, seed: int, start: int, only: str) -> None:
    """Answers every case from `start` on, in its own process; sends each label, then its result."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30,) * 2)  # the machine is others' too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder, scratch = Path(place), Path(place, "case")
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1), os.dup2(output, 2)
        (folder / "kind").mkdir()
        try:
            answer, cases = KINDS[name](folder / "kind", random.Random(f"{seed} {name}"))
            for number, case in enumerate(list(cases)):
                if number < start or only not in case.label:
                    continue
                scratch.mkdir()
                given = case.make(scratch)
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
                before, begin = _megabytes("VmRSS"), time.monotonic()
                pipe.send((number, case.label))
                verdict, said = judge(answer, case, given)
                pipe.send((verdict, said[:2000], _megabytes("VmHWM") - before, time.monotonic() - begin))
                del given
                shutil.rmtree(scratch)
            pipe.send(None)
        except Exception:
            pipe.send(traceback.format_exc())


@dataclass
class Result:
    kind: str
    label: str
    verdict: str
    said: str = ""
    megabytes: float = 0.0
    seconds: float = 0.0

    @property
    def is_bad(self) -> bool:
        return self.verdict not in ("accepted", "refused") or self.megabytes > MOST_MEGABYTES

    def __str__(self) -> str:
        size = f"{self.megabytes:.0f} MB, {self.seconds:.1f} s"
        return f"{self.verdict} {self.kind} [{self.label}] {size}: {self.said[:400]}"


def _answers_in_time(pipe: Any, process: int) -> bool:
    """Counts seconds of a CPU, or of waiting: others may use the machine too."""

    def used() -> float:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        first = before = used()
        for _ in range(10):
            if pipe.poll(MOST_SECONDS):
                return True
            now = used()
            if now - first > MOST_SECONDS or now - before < 1:
                return False
            before = now
    except OSError:  # it died, which the pipe tells
        return True
    return False


def fuzz(name: str, seed: int, only: str = "") -> Iterator[Result]:
    """After a hang or a crash another process goes on with the next input."""
    context, start = multiprocessing.get_context("forkserver"), 0
    context.set_forkserver_preload([*PRELOAD, __name__])
    while True:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(theirs, name, seed, start, only), daemon=True)
        worker.start()
        theirs.close()
        label = None
        try:
            if not ours.poll(600):
                raise TimeoutError(f"{name}: the undamaged inputs took more than 600 seconds")
            while True:
                if not _answers_in_time(ours, worker.pid):
                    yield Result(name, label or "?", "hang", seconds=MOST_SECONDS)
                    break
                message = ours.recv()
                if isinstance(message, str):
                    raise RuntimeError(f"{name}: the inputs could not be made\n{message}")
                if message is None:
                    worker.join(60)
                    return
                if len(message) == 2:
                    start, label = message[0] + 1, message[1]
                else:
                    yield Result(name, label, *message)
                    label = None
        except EOFError:
            worker.join(10)
            if label is None:
                raise RuntimeError(f"{name}: the process died between inputs ({worker.exitcode})") from None
            yield Result(name, label, "unnamed", f"the process died ({worker.exitcode})")
        finally:
            worker.kill()
            worker.join(10)


def table(results: list[Result]) -> str:
    heads = ("inputs", *VERDICTS, "over 600 MB", "peak MB", "slowest s", "sum s")
    lines = [f"{'kind':<22}" + "".join(f"{head:>12}" for head in heads)]
    for name in [*dict.fromkeys(result.kind for result in results), "all"]:
        group = [result for result in results if name in ("all", result.kind)]
        count = Counter(result.verdict for result in group)
        megabytes, seconds = [result.megabytes for result in group], [result.seconds for result in group]
        numbers = [len(group), *(count[verdict] for verdict in VERDICTS), sum(m > MOST_MEGABYTES for m in megabytes)]
        numbers += [round(max(megabytes)), round(max(seconds), 1), round(sum(seconds))]
        lines.append(f"{name:<22}" + "".join(f"{number:>12}" for number in numbers))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_inputs_are_refused_by_name_or_answered_rightly(capfd: pytest.CaptureFixture[str]) -> None:
    results = [result for name in KINDS for result in fuzz(name, seed=1)]
    with capfd.disabled():
        print(f"\n{table(results)}", file=sys.stderr)
    assert len(results) >= LEAST_INPUTS
    bad = [str(result) for result in results if result.is_bad]
    assert not bad, "\n".join(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", default="", help="only cases whose label contains this")
    parser.add_argument("--all", action="store_true", help="a line for each input, not only for what went wrong")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    results = []
    for name in options.kind or KINDS:
        for result in fuzz(name, options.seed, options.case):
            results.append(result)
            if result.is_bad or options.all:
                print(result, flush=True)
        if results:
            print(table(results), flush=True)
    return any(result.is_bad for result in results)


if __name__ == "__main__":
    sys.exit(main())
