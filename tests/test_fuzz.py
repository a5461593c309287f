"""Damaged inputs through the doors that people use: a right answer or a refusal that names what is wrong, in bounded
time and memory. FUZZ_SEED draws others; FUZZ_CASE runs only those whose label contains it.

Each kind runs in its own process, so that a hang or a crash costs one input, and its memory can be measured.
"""

import gc
import math
import multiprocessing
import os
import random
import resource
import shutil
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
from fuzz_inputs import Answer, Case
from fuzz_media import MEDIA
from fuzz_stored import STORED


KINDS = MEDIA | STORED
MOST_SECONDS, MOST_MEGABYTES, LEAST_INPUTS = 30, 600, 35
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
PRELOAD = ["mf2face.inference.analyze", "mf2face.data.build.mfa", "mf2face.training.stores", "fuzz_stored"]


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_inputs_are_refused_by_name_or_answered_rightly(kind: str) -> None:
    results = list(fuzz(kind, int(os.environ.get("FUZZ_SEED", "1")), os.environ.get("FUZZ_CASE", "")))
    verdicts = Counter(result.verdict for result in results)
    print(f"{len(results)} inputs, {dict(verdicts)}, at most {max(result.megabytes for result in results):.0f} MB")
    assert len(results) >= LEAST_INPUTS or "FUZZ_CASE" in os.environ
    assert [str(result) for result in results if result.is_bad] == []
