"""Costs of real data: reading labels, the training loader against torchvision's, memory of a build, captions.

    python examples/benchmark/data.py [--quick] [--only labels loader memory captions] [--json FILE]

label_lines_per_s: of 151 label files in Aff-Wild2's form, two tracks, read, checked and filtered (no image is opened).
loader_ratio: images a second of our loader (decode, align, turn, shift, flip, recolour, hide, normalise) over those of
torchvision's ImageFolder (decode, resize, crop, flip, normalise), the same files, 2 workers each, taken in turns.
build_memory_ratio: peak memory of a build of ten times the images over that of the build. Faces are drawn.
caption_efficiency: requests a second to a slow chat server on this machine, over concurrency / latency; one request
asks for an image's three captions. kills_*: see `measure_kills`.
"""

import asyncio
import json
import multiprocessing
import random
import resource
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
import torch
from report import options, show
from torch.utils.data import DataLoader
from torchvision import datasets as tv_datasets
from torchvision import transforms

from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.captions.chat import ChatClient
from mf2face.captions.run import ChatWriter
from mf2face.captions.styles import CaptionRow, save_captions
from mf2face.data.build.mfa import BuildOptions, build_mfa
from mf2face.data.build.splits import plan_mfa
from mf2face.data.corpora.frames import every_and_changes
from mf2face.data.corpora.read import read_corpus
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from processing_mf2 import MF2Augmentation, MF2Processor


VIDEOS = 151
BATCH = 56


def write_label_files(folder: Path, lines: int) -> int:
    """Both tracks, with unknown labels, as ABAW's look; how many lines of labels in all."""
    rng, units = np.random.default_rng(0), LABEL_SETS["aff_wild2"].action_units
    each = -(-lines // (2 * VIDEOS))
    (folder / "cropped_aligned").mkdir(parents=True)
    for track, names, most in (
        *(("AU_Detection_Challenge", units, 2), ("EXPR_Classification_Challenge", EMOTIONS, 8)),
    ):
        for split in ("Train_Set", "Validation_Set"):
            (folder / "annotations" / track / split).mkdir(parents=True)
        for video in range(VIDEOS):
            values = rng.integers(-1, most, (each, len(units) if most == 2 else 1))
            text = "\n".join([",".join(names), *(",".join(map(str, row)) for row in values.tolist())])
            split = "Train_Set" if video % 4 else "Validation_Set"
            (folder / "annotations" / track / split / f"video{video}.txt").write_text(text + "\n")
    return 2 * each * VIDEOS


def measure_labels(folder: Path, lines: int) -> dict[str, float]:
    written = write_label_files(folder, lines)
    names = [f"{number:05d}.jpg" for number in range(1, written // (2 * VIDEOS) + 1)]
    start = time.perf_counter()
    frames = read_corpus("aff_wild2", folder, list_folder=lambda place: names)
    plan_mfa(frames, require="both", balance=True)
    every_and_changes(frames)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"label_lines": written, "label_lines_per_s": written / seconds, "label_peak_memory_mb": peak}


def draw_corpus(folder: Path, images: int, side: int) -> Path:
    """Pictures of drawn people with landmarks and labels, as anybody's own."""
    import cv2

    folder.mkdir(parents=True)
    truth, units = synthetic_truth(images), LABEL_SETS["mfa"].action_units
    with open(folder / "labels.jsonl", "w") as file:
        for number in range(images):
            pixels, landmarks = draw_example(number, size=side)
            cv2.imwrite(str(folder / f"{number:06d}.jpg"), pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            row = {"image": f"{number:06d}.jpg", "subject": f"{number // 16}", "landmarks": landmarks.tolist()}
            row |= dict(zip(units, truth["au_labels"][number].tolist(), strict=True))
            file.write(json.dumps(row | {"emotion": EMOTIONS[truth["emotion"][number]]}) + "\n")
    return folder


def build(folder: Path, out: Path) -> dict:
    frames, split = plan_mfa(read_corpus("own", folder))
    return build_mfa(frames, split, out, BuildOptions(landmarks="corpus", shard_rows=256))


def images_per_s(loader: DataLoader) -> float:
    """After the first batch, for which the workers have to start."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(len(batch["pixel_values"] if isinstance(batch, dict) else batch[0]) for batch in batches)
    return count / (time.perf_counter() - start)


def measure_loader(folder: Path, images: int, rounds: int, side: int = 256) -> dict[str, float]:
    import datasets

    build(draw_corpus(folder / "own", images, side), folder / "built")
    rows = datasets.load_dataset(str(folder / "built"), cache_dir=str(folder / "cache"))["train"]
    for number, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
        target = folder / "classes" / str(row["emotion"]) / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(row["image"]["bytes"])
    change = [transforms.Resize(256), transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
    change += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    theirs = tv_datasets.ImageFolder(folder / "classes", transforms.Compose(change))
    processor = MF2Processor.for_model(MF2Config.from_size("base"))
    augment = MF2Augmentation()
    ours = MF2Examples(rows, processor, augment=augment, texts=False)
    with_texts = MF2Examples(rows, processor, augment=augment)
    collate = MF2Collator(processor.tokenizer.pad_token_id)
    common = {"batch_size": BATCH, "shuffle": True, "num_workers": 2, "drop_last": True}
    speeds: dict[str, list[float]] = {"imagefolder": [], "loader": [], "loader_with_texts": []}
    for _ in range(rounds):
        speeds["imagefolder"].append(images_per_s(DataLoader(theirs, **common)))
        speeds["loader"].append(images_per_s(DataLoader(ours, collate_fn=collate, **common)))
        speeds["loader_with_texts"].append(images_per_s(DataLoader(with_texts, collate_fn=collate, **common)))
    result = {f"{name}_images_per_s": float(np.median(values)) for name, values in speeds.items()}
    for name in ("loader", "loader_with_texts"):  # neighbours in time, for other work on the machine slows both
        pairs = np.array(speeds[name]) / np.array(speeds["imagefolder"])
        result[f"{name}_ratio"] = float(np.median(pairs))
    return result


def measure_memory(folder: Path, images: int) -> dict[str, float]:
    """Each build in a process of its own; what it held beyond what it had imported."""
    extra = {}
    for count in (images, 10 * images):
        draw_corpus(folder / str(count), count, 96)
        code = "import sys, data; print(data.peak_of_build(*sys.argv[1:]))"
        command = [sys.executable, "-c", code, str(folder / str(count)), str(folder / f"built{count}")]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        extra[count] = json.loads(done.stdout.splitlines()[-1])
    peaks = [extra[count] for count in sorted(extra)]
    return {
        "build_images": images,
        "build_peak_memory_mb": peaks[0],
        "build_peak_memory_tenfold_mb": peaks[1],
        "build_memory_ratio": peaks[1] / peaks[0],
    }


def peak_of_build(folder: str, out: str) -> float:
    build(Path(folder), Path(out))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


_SERVER = Path(__file__).resolve().parents[2] / "tests" / "servers" / "chat_server.py"
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
    kills_paid_twice are of rows that no kill met in flight.
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
            while (result := _ask(url, "keys"))["working"]:  # a question that was sent is answered, and paid
                time.sleep(0.01)
            last = set(result["arrived"][before:][-concurrency:])
            allowed.update(last)
            in_flight, before = in_flight + len(last), len(result["arrived"])
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


def measure_captions(folder: Path, rows: int = 1600, concurrency: int = 16, kills: int = 50) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "caption_efficiency": measure_efficiency(folder, rows, concurrency, latency=0.2),
        "caption_efficiency_of_bare_client": measure_ceiling(rows, concurrency, latency=0.2),
        **measure_kills(folder, rows=160 * kills, kills=kills),
    }


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parts = ("labels", "loader", "memory", "captions")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--quick", action="store_true", help="so little that the figures mean nothing")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    quick, figures = arguments.quick, {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "labels" in arguments.only:
            figures |= measure_labels(folder / "labels", 3_000 if quick else 300_000)
        if "memory" in arguments.only:
            figures |= measure_memory(folder / "memory", 48 if quick else 300)
        if "loader" in arguments.only:
            figures |= measure_loader(folder / "loader", 224 if quick else 1344, 1 if quick else arguments.rounds)
        if "captions" in arguments.only:
            figures |= measure_captions(folder / "captions")
    show(figures, "{:32} {:14,.3f}", arguments.json)
    return figures


if __name__ == "__main__":
    main()
