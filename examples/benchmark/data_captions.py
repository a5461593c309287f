"""Does the caption writer keep a slow server busy, and what do kills cost? Against a chat server on this machine.

python examples/benchmark/data_captions.py [--json FILE]

One request answers one image with its three captions.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from report import write_json

from mf2face.captions.chat import ChatClient
from mf2face.captions.run import ChatWriter
from mf2face.captions.styles import CaptionRow, save_captions


_SERVER = Path(__file__).parents[2] / "tests" / "servers" / "chat_server.py"
_KEY = "sk-loopback-0123456789abcdef"


@contextmanager
def chat_server(latency: float) -> Iterator[str]:
    """Another process, so that its work is not counted as the writer's."""
    server = subprocess.Popen(
        [sys.executable, str(_SERVER), "--latency", str(latency)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def draw_rows(count: int) -> list[CaptionRow]:
    rng = np.random.default_rng(0)
    states, emotions = rng.integers(0, 2, (count, 12)).tolist(), rng.integers(0, 8, count).tolist()
    return [CaptionRow(f"drawn/{n}", states[n], emotions[n]) for n in range(count)]


def chat_writer(url: str, concurrency: int) -> ChatWriter:
    return ChatWriter(base_url=url, api_key=_KEY, concurrency=concurrency, progress=False)


def measure_efficiency(folder: Path, rows: int, concurrency: int, latency: float) -> float:
    """Requests a second, as a share of concurrency / latency; from the call to the last line on the disk."""
    with chat_server(latency) as url:
        chat_writer(url, 1).write([CaptionRow("warm", None, 0)], folder / "warm.jsonl")  # imports the client
        start = time.perf_counter()
        report = chat_writer(url, concurrency).write(draw_rows(rows), folder / "efficiency.jsonl")
        seconds = time.perf_counter() - start
    if report.written != rows:
        raise RuntimeError(f"caption_efficiency: got {report.written} rows, expected {rows}: {report}")
    return rows / seconds / (concurrency / latency)


def measure_ceiling(rows: int, concurrency: int, latency: float) -> float:
    """The same by the bare client: no check, journal or retry. What this machine's processor leaves for anybody."""
    with chat_server(latency) as url:
        writer = chat_writer(url, concurrency)
        asked, left = writer.style.asked, iter(draw_rows(rows))

        async def ask_all(client: ChatClient) -> None:
            for row in left:
                await client.ask(writer.messages(row)[0], asked, row.id)

        async def run() -> None:
            async with writer.client() as client:
                await asyncio.gather(*(ask_all(client) for _ in range(concurrency)))

        start = time.perf_counter()
        asyncio.run(run())
        return rows / (time.perf_counter() - start) / (concurrency / latency)


def _write(url: str, rows: int, concurrency: int, journal: Path) -> None:
    chat_writer(url, concurrency).write(draw_rows(rows), journal)


def _ask(url: str, what: str) -> dict:
    with urllib.request.urlopen(url.replace("/v1", f"/loopback/{what}")) as answer:
        return json.loads(answer.read())


def measure_kills(
    folder: Path, rows: int = 3000, kills: int = 50, concurrency: int = 16, latency: float = 0.05, longest: float = 0.8
) -> dict[str, float]:
    """A process is killed (SIGKILL) at a random moment up to `longest` seconds after its start, and started again,
    until all kills are done; then it may finish. In flight at a kill are the last `concurrency` requests that the
    server got from the process: a writer asks again only when an answer is in the journal.

    kills_lost: rows missing, or other than without kills. kills_paid_again: answers beyond one a row, of which
    kills_paid_twice are of rows that no kill found in flight.
    """
    start, draw = multiprocessing.get_context("fork"), random.Random(0)
    allowed, moments = Counter(), [draw.uniform(0, longest) for _ in range(kills)]
    with chat_server(latency) as url:
        journal, other = folder / "killed.jsonl", folder / "whole.jsonl"
        # Each process has what its parent has imported; this row is in no other run.
        chat_writer(url, 1).write([CaptionRow("warm", None, 0)], folder / "warm.jsonl")
        in_flight, before = 0, 1
        for number, moment in enumerate(moments):
            writing = start.Process(target=_write, args=(url, rows, concurrency, journal))
            writing.start()
            writing.join(moment)
            if not writing.is_alive():
                raise RuntimeError(f"kills: the run ended after {number} of {kills}; take more rows or shorter moments")
            writing.kill()
            writing.join()
            while (found := _ask(url, "keys"))["working"]:  # a question that was sent is answered, and paid
                time.sleep(0.01)
            last = set(found["arrived"][before:][-concurrency:])
            allowed.update(last)
            in_flight, before = in_flight + len(last), len(found["arrived"])
        _write(url, rows, concurrency, journal)
        paid = _ask(url, "keys")["paid"]
        _write(url, rows, concurrency, other)
        writer = chat_writer(url, concurrency)
        for path in (journal, other):
            save_captions(path.with_suffix(".captions"), writer.read(draw_rows(rows), path))
    lines = [path.with_suffix(".captions").read_text().splitlines() for path in (journal, other)]
    good = {json.loads(line)["id"] for line in set(lines[0]) & set(lines[1])}
    return {
        "kills": kills,
        "kills_in_flight": in_flight,
        "kills_paid_again": sum(paid.values()) - 1 - rows,
        "kills_lost": rows - len(good) if len(lines[1]) == rows else rows,
        "kills_paid_twice": sum(max(0, count - 1 - allowed[key]) for key, count in paid.items()),
    }


def measure_captions(folder: Path, *, rows: int = 1600, concurrency: int = 16, kills: int = 50) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "caption_efficiency": measure_efficiency(folder, rows, concurrency, latency=0.2),
        "caption_efficiency_of_bare_client": measure_ceiling(rows, concurrency, latency=0.2),
        **measure_kills(folder, rows=160 * kills, kills=kills),
    }


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the figures there, as one flat object")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure_captions(Path(folder))
    for name, value in figures.items():
        print(f"{name:34} {value:10.4g}")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
