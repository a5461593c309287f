"""What the `mf2` command costs beside the bare model, and the model beside a plain ViT-B; ONNX and 8 bits beside torch.

python examples/benchmark/inference.py [--size base] [--images 500] [--au_queries N] [--rounds 5] [--json FILE]
    [--only folder vit engines f1 memory curve routes compare live sheet]

Weights are random, faces drawn; `f1` and `routes` use the embedded checkpoint. One thread unless OMP_NUM_THREADS is
set. What is compared takes turns, in short rounds and turning order; figures are medians over the rounds of ratios
within one round. Every ratio of time has a twin `..._cpu` of CPU-seconds, which other work on the machine hardly moves.
FILE keeps the figures of other parts, and has for each part its command, commit, date, machine and load.

folder_over_bare       seconds of the whole command over a folder (start, model, decoding, rows written, batch size
                       chosen automatically), over those of bare forward passes of as many ready faces; at most 1.25
over_vit_pipeline      seconds of AUs and emotion of image files, over those of transformers' image-classification
                       pipeline with a plain ViT-B (--size tiny: a narrow one) for the same files; at most 1.6
onnx_over_eager        speed of ONNX over speed of torch; at least 1
int8_over_eager        speed of 8 bits over speed of torch; at least 1.5
int8_f1_loss           macro AU F1 of the embedded checkpoint minus that of its 8 bits, on synthetic faces; at most 0.01
memory_folder_ratio    peak memory of the command over a ten times larger folder, over that of a folder; 1 is flat
memory_video_ratio     the same of a video ten times as long
routes_max_difference  of a probability by torch one by one, ONNX, the pipeline, the command and the demo, from torch in
                       batches, on the embedded checkpoint and synthetic faces; at most 1e-3 (`mf2 certify`)
routes_decisions_differ  AUs and emotions that those routes decide otherwise; none
int8_decisions_differ  share of them that 8 bits decide otherwise; at most 0.01
compare_seconds        of `mf2 compare` with two csv files of 100,000 rows; at most 10
live_fps               frames a second that a client of `mf2 --live` receives, of a 640 x 480 file of 60 frames a second
                       in place of the camera, with the embedded checkpoint and detector; at least 15. live_fps_cpu: by
                       CPU-seconds of reader, model, drawing and client together
live_faces             share of these frames in which the drawn face was found
sheet_seconds          from the start of loading to the first frame drawn of a contact sheet of 5,000 faces in Chromium,
                       slowest of its pages, median of the rounds; at most 3
cost_N                 seconds of the whole forward pass with N queries an AU, over those of the tower alone
f1_N                   with --accuracy DIR: macro AU F1 of short trainings of the tiny size with N queries, scored on
                       further faces of other people, thresholds tuned on validation subjects; finished runs are read
"""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from report import (
    further_faces,
    in_turns,
    mean_sd,
    options,
    origin,
    read_json,
    run_once,
    save_figure,
    seconds,
    show,
    write_json,
)
from torch import nn

from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.synthetic.faces import draw_example
from mf2face.inference.certify import certify, table
from mf2face.inference.certify import figures as certified
from mf2face.inference.rows import Columns
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.export import INPUTS, example_inputs, export_onnx, quantize_onnx, session
from processing_mf2 import MF2Processor, face_pipeline
from processing_mf2.image_io import read_image


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import export_model


PARTS = ("folder", "vit", "engines", "f1", "memory", "routes", "compare", "live", "sheet", "curve")


def spent(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall, and of this process's CPU."""
    cpu = time.process_time()
    return seconds(function), time.process_time() - cpu


def printed_turns(calls: dict[str, Callable[[], object]], rounds: int, title: str) -> list[dict[str, tuple]]:
    measured = in_turns(calls, rounds, spent)
    for name in calls:
        wall, cpu = (statistics.median(times[name][kind] for times in measured) for kind in (0, 1))
        print(f"{title}: {name:22} {wall:8.3f}s, CPU {cpu:8.3f}s")
    return measured


def ratio(measured: Sequence[dict[str, tuple[float, float]]], over: str, under: str, name: str) -> dict[str, float]:
    result = {}
    for kind, suffix in enumerate(("", "_cpu")):
        result[name + suffix] = statistics.median(times[over][kind] / times[under][kind] for times in measured)
    return result


_ROOT = Path(__file__).resolve().parents[2]
_DRAWN = 64
_SIDE = 256
_FPS = 10
# Between this process and the command: Linux counts what a process held before it became another one's memory, too.
_SMALL_PARENT = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def write_faces(folder: Path, count: int, different: int = _DRAWN) -> list[Path]:
    """JPEG files; beyond so many different ones they are copies."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for index in range(min(count, different)):
        pixels, _ = draw_example(16 * index, seed=5, size=_SIDE)
        drawn.append(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    paths = [folder / f"{index:06d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(drawn[index % len(drawn)])
    return paths


def write_video(path: Path, minutes: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), _FPS, (_SIDE, _SIDE))
    faces = [np.ascontiguousarray(draw_example(index, seed=5, size=_SIDE)[0][..., ::-1]) for index in range(16)]
    for index in range(round(minutes * 60 * _FPS)):
        writer.write(faces[index // _FPS % len(faces)])
    writer.release()
    return path


@torch.no_grad()
def bare_seconds(model: nn.Module, batch: tuple[torch.Tensor, ...], passes: int) -> dict[str, float]:
    """Of one face."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(passes):
        model(*batch)
    faces = passes * len(batch[0])
    return {"wall": (time.perf_counter() - wall) / faces, "cpu": (time.process_time() - cpu) / faces}


def spent_by(command: list[str]) -> dict[str, float]:
    started = [sys.executable, "-S", "-c", _SMALL_PARENT, *command]
    output = subprocess.run(started, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    code, wall, cpu, peak_mb = json.loads(output.splitlines()[-1])
    if code:
        raise RuntimeError(f"the command ended with {code}: {' '.join(command)}")
    return {"wall": wall, "cpu": cpu, "peak_mb": peak_mb}


def command_cost(inputs: Path, output: Path, *options: str) -> dict[str, float]:
    """Of the whole process; `peak_mb` is what it held at most."""
    command = [sys.executable, "-m", "mf2face.inference.cli", str(inputs), "--aligned", "--device", "cpu"]
    whole = [*command, "--quiet", "-o", str(output), *options]
    cost = spent_by(whole)
    about = json.loads(output.with_name(output.name + ".about.json").read_text())
    return {**cost, "batch_size": about["batch_size"], "faces": about["faces"]}


def memory_ratios(images: int, minutes: float) -> dict[str, float]:
    """With the embedded model, so that what is not its weights weighs most, and batches of 32, which a long run may
    find and a short one not; the video at two frames a second."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, few, many in (("folder", images, 10 * images), ("video", minutes / 10, minutes)):
            peaks = []
            for amount in (few, many):
                made = folder / f"{name}-{amount}"
                options: tuple[str, ...] = ("--batch_size", "32")
                if name == "folder":
                    write_faces(made, int(amount))
                else:
                    made, options = write_video(made.with_suffix(".mp4"), amount), (*options, "--fps", "2")
                cost = command_cost(made, folder / f"{name}-{amount}.csv", *options)
                peaks.append(cost["peak_mb"])
                unit = "images" if name == "folder" else "minutes"
                print(
                    f"memory: {amount} {unit}, {cost['faces']} faces, batches of {cost['batch_size']}: "
                    f"{cost['peak_mb']:.0f} MiB at most"
                )
            result[f"memory_{name}_mb"], result[f"memory_{name}_ratio"] = peaks[1], peaks[1] / peaks[0]
    return result


def config_of(size: str, au_queries: int | None) -> MF2Config:
    return MF2Config.from_size(size, **({} if au_queries is None else {"au_config": {"num_query_tokens": au_queries}}))


def folder_over_bare(size: str, au_queries: int | None, images: int, batch_size: int, rounds: int) -> dict[str, float]:
    """Rounds of bare passes come before and after the one command, a command over 500 images being long enough."""
    config = config_of(size, au_queries)
    model = MF2ForPreTraining(config).eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_faces(folder / "images", images)
        model.save_pretrained(folder / "model")
        MF2Processor.for_model(config).save_pretrained(folder / "model")
        batch, passes = example_inputs(model, batch_size), max(1, images // batch_size // 4)
        before = [bare_seconds(model, batch, passes) for _ in range(rounds)]
        cost = command_cost(folder / "images", folder / "rows.csv", "--model", str(folder / "model"))
        after = [bare_seconds(model, batch, passes) for _ in range(rounds)]
    result = {"folder_batch_size": cost["batch_size"], "folder_images": images}
    for kind, suffix in (("wall", ""), ("cpu", "_cpu")):
        bare = images * statistics.median(times[kind] for times in (*before, *after))
        print(f"folder: {images} images, {kind}: command {cost[kind]:.1f}s, bare forward {bare:.1f}s")
        result[f"folder_over_bare{suffix}"] = cost[kind] / bare
    return result


def over_vit_pipeline(size: str, au_queries: int | None, images: int, batch_size: int, rounds: int) -> dict[str, float]:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    config = config_of(size, au_queries)
    model, processor = MF2ForFaceAnalysis(config).eval(), MF2Processor.for_model(config)
    narrow = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192} if size == "tiny" else {}
    vit = ViTForImageClassification(ViTConfig(num_labels=20, **narrow)).eval()
    theirs = pipeline("image-classification", model=vit, image_processor=ViTImageProcessor(), device="cpu")
    ours = face_pipeline("face-analysis", model, processor, device="cpu", landmark_source="template")
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(path) for path in write_faces(Path(scratch), images)]
        calls = {
            "mf2": lambda: ours(paths, batch_size=batch_size),
            "vit": lambda: theirs(paths, batch_size=batch_size),
        }
        measured = printed_turns(
            calls, rounds, f"vit, {images} files, {config.au_config.num_query_tokens} queries an AU"
        )
    return ratio(measured, "mf2", "vit", "over_vit_pipeline")


def engine_speeds(size: str, au_queries: int | None, batch_size: int, rounds: int) -> dict[str, float]:
    model = MF2ForFaceAnalysis(config_of(size, au_queries)).eval()
    batch = dict(zip(INPUTS, example_inputs(model, batch_size), strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        file = export_onnx(model, scratch)
        runs = {"onnx": session(file), "int8": session(quantize_onnx(file))}
        megabytes = {path.stem: path.stat().st_size / 2**20 for path in Path(scratch).glob("*.onnx")}
    print("engines: " + ", ".join(f"{name} {value:.0f} MiB" for name, value in sorted(megabytes.items())))
    calls: dict[str, Callable[[], object]] = {"eager": lambda: export_model.by_torch(model, batch)}
    calls |= {name: lambda run=run: export_model.by_onnx(run, batch) for name, run in runs.items()}
    measured = printed_turns(calls, rounds, f"engines, {batch_size} faces")
    result = {}
    for name in runs:  # speeds: the other one's seconds stand above
        result |= ratio(measured, "eager", name, f"{name}_over_eager")
    return result


def int8_f1_loss(faces: int) -> dict[str, float]:
    figures = export_model.main(["--faces", str(faces)])
    return {"int8_f1_loss": figures["torch"]["f1"] - figures["int8"]["f1"]}


def routes(faces: int) -> dict[str, float]:
    sys.path.insert(0, str(_ROOT / "examples" / "demo"))
    from demo_engine import Engine, Picture

    engine = Engine(device="cpu")
    (name,) = engine.models

    def by_demo(rows: Sequence[dict]) -> list[dict]:
        pictures = (Picture(row["input"], read_image(row["input"])) for row in rows)
        return [row for picture in pictures for row in engine.rows(picture, name, aligned=True)[1]]

    with tempfile.TemporaryDirectory() as scratch:
        write_faces(Path(scratch), faces, faces)
        found = certify(scratch, aligned=True, most=faces, more={"demo": by_demo})
    print(table(found))
    return certified(found)


def compare_seconds(rows: int = 100_000) -> dict[str, float]:
    """Of the whole command; rows have all 12 AUs and the landmarks."""
    columns, random = Columns(LABEL_SETS["mfa"].action_units, tuple(EMOTIONS)), np.random.default_rng(0)
    units = [name for name in columns.names if name.startswith("AU") and "_" not in name]
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{name}.csv" for name in "ab"]
        for file in files:
            values = random.random((rows, len(units))).round(6)
            with open(file, "w") as out:
                out.write(",".join(columns.names) + "\n")
                for frame, answers in enumerate(values.tolist()):
                    row = dict.fromkeys(columns.names, "100.25") | dict(zip(units, map(str, answers), strict=True))
                    row |= {f"{name}_c": str(int(value > 0.5)) for name, value in zip(units, answers, strict=True)}
                    place = {"input": "film.mp4", "frame": str(frame), "face_id": "0", "top_emotion": "Neutral"}
                    out.write(",".join((row | place).values()) + "\n")
        cost = spent_by([sys.executable, "-m", "mf2face.inference.cli", "compare", *map(str, files)])
    print(f"compare: {rows:,} rows, {cost['wall']:.1f}s, {cost['peak_mb']:.0f} MiB at most")
    found = {"compare_seconds": cost["wall"], "compare_seconds_cpu": cost["cpu"]}
    return {**found, "compare_rows": rows, "compare_peak_mb": cost["peak_mb"]}


def live_fps(seconds: float = 20) -> dict[str, float]:
    from mf2face.inference.cli import main as mf2

    arrived: list[tuple[float, float]] = []

    def watch(address: str) -> None:
        with urllib.request.urlopen(f"{address}stream") as stream:
            arrived.extend((time.perf_counter(), time.process_time()) for line in stream if line.startswith(b"--frame"))

    os.environ["DISPLAY"] = ":0"
    webbrowser.open = lambda address: threading.Thread(target=watch, args=[address], daemon=True).start()
    with tempfile.TemporaryDirectory() as scratch:
        video, rows = Path(scratch, "camera.mp4"), Path(scratch, "rows.csv")
        writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 60, (640, 480))
        face = cv2.cvtColor(draw_example(24, seed=5, size=320)[0], cv2.COLOR_RGB2BGR)
        for number in range(round(60 * seconds)):
            frame, left = np.full((480, 640, 3), 190, np.uint8), 160 + round(60 * np.sin(number / 40))
            frame[80:400, left : left + 320] = face
            writer.write(frame)
        writer.release()
        mf2([str(video), "--live", "-o", str(rows), "--quiet"])
        about = json.loads(Path(f"{rows}.about.json").read_text())
    print(f"live: {len(arrived)} of {about['frames']} frames arrived, {about['faces']} faces")
    wall, cpu = ((len(arrived) - 1) / (last - first) for first, last in zip(arrived[0], arrived[-1], strict=True))
    return {"live_fps": wall, "live_fps_cpu": cpu, "live_faces": about["faces"] / about["frames"]}


_OPENED = """<script>addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {{
  location = "http://127.0.0.1:{port}/" + performance.now(); }})));</script></body>"""


def opening_seconds(page: Path, browser: Sequence[str]) -> float:
    """Until its first frame is drawn, by the page's own clock; it goes to an address of this process then."""
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as profile:
        server.settimeout(300)
        copy = page.with_stem("opened")
        opened = _OPENED.format(port=server.getsockname()[1])
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", opened), encoding="utf-8")
        command = [*browser, f"--user-data-dir={profile}", copy.as_uri()]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            said: list[bytes] = []
            while not said:  # browsers also connect ahead, and say nothing
                connection, _ = server.accept()
                with connection:
                    said = connection.recv(1024).split()
        finally:
            running.terminate()
            running.wait()
    return float(said[1].removeprefix(b"/")) / 1000


def sheet_seconds(rounds: int, faces: int = 5000) -> dict[str, float]:
    from mf2face.inference.explain.picture_rows import PictureRows
    from mf2face.inference.explain.row_pictures import save_contact_html
    from mf2face.inference.rows import Columns

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("sheet: no Chromium here")
        return {}
    config = MF2Config.from_size("tiny")
    columns = Columns(tuple(config.action_units), tuple(config.emotions))
    units = {unit: {"probability": 0.7, "active": True} for unit in config.action_units[:4]}
    answer = {"action_units": units, "emotions": {config.emotions[0]: 0.8}, "emotion": config.emotions[0]}
    rows = PictureRows.of_columns(columns.names)
    with tempfile.TemporaryDirectory() as scratch:
        for path in write_faces(Path(scratch, "images"), faces):
            box, points = (20, 20, _SIDE - 20, _SIDE - 20), np.zeros((68, 2))
            rows.add([columns.row(str(path), 0, float("nan"), 0, box, 1.0, points, "given", answer)])
        pages = save_contact_html(rows, Path(scratch, "sheet.html"))
        command = [browser, "--headless", "--no-sandbox", "--window-size=1280,900"]
        slowest = [statistics.median(opening_seconds(page, command) for _ in range(rounds)) for page in pages]
        size = max(page.stat().st_size for page in pages) / 2**20
    print(
        f"sheet: {faces} faces on {len(pages)} pages of at most {size:.1f} MiB: "
        + " ".join(f"{s:.2f}s" for s in slowest)
    )
    return {"sheet_seconds": max(slowest), "sheet_pages": len(pages)}


TRAINING = ["--task", "full", "--num_images", "2000", "--num_train_epochs", "8", "--disable_tqdm", "True"]
PEOPLE, TEST_IMAGES = 7, 1600  # a tenth of so few images would leave the order of the points to chance


def with_queries(model: MF2ForFaceAnalysis, count: int) -> None:
    """The same model with so many queries an AU, of random weights."""
    units, width = len(model.config.action_units), model.config.au_config.hidden_size
    model.mf2.au_vl.queries = nn.Parameter(torch.randn(1, count, width))
    model.classifiers.au_weight = nn.Parameter(torch.randn(units, count, width) / width)


@torch.no_grad()
def cost_curve(size: str, queries: Sequence[int], batch_size: int, rounds: int) -> dict[str, float]:
    model = MF2ForFaceAnalysis(MF2Config.from_size(size)).eval()
    pixels, landmarks = example_inputs(model, batch_size)

    def whole(count: int) -> Callable[[], object]:
        def run() -> None:
            with_queries(model, count)
            model(pixels, landmarks)

        return run

    calls = {"tower": lambda: model.mf2.vision(pixels), **{f"cost_{count}": whole(count) for count in queries}}
    measured, result = in_turns(calls, rounds, spent), {}
    for count in queries:
        result |= ratio(measured, f"cost_{count}", "tower", f"cost_{count}")
    return result


def trained_scores(folder: Path, queries: Sequence[int], seeds: Sequence[int]) -> dict[str, float]:
    rows = further_faces(folder / f"faces-{TEST_IMAGES}", TEST_IMAGES, "studio", PEOPLE + 1, "mfa")
    result: dict[str, float] = {}
    for count in queries:
        runs = []
        for seed in seeds:
            place, options_of = folder / f"{count}-{seed}", f'au_config={{"num_query_tokens": {count}}}'
            run_once(
                place, [*TRAINING, "--people_seed", str(PEOPLE), "--model_options", options_of, "--seed", str(seed)]
            )
            scored = ["--task", "evaluate", "--model_name_or_path", str(place), "--dataset", str(rows)]
            runs.append(run_once(place / "tested", [*scored, "--use_captions", "False", "--disable_tqdm", "True"]))
        for name, score in (("f1", "au_f1_tuned_macro"), ("auc", "au_roc_auc_macro"), ("emotion", "emotion_top1")):
            result[f"{name}_{count}"], result[f"{name}_{count}_sd"] = mean_sd([run[score] for run in runs])
    return result


def draw_curve(figures: dict[str, float], queries: Sequence[int], size: str, picture: Path | None) -> None:
    """A table, and the picture if there is accuracy to show."""
    print(
        f"\n{'queries an AU':>13} {f'{size}: time over tower':>24} {'by CPU time':>12} {'AU F1 (tiny)':>18}"
        f" {'emotion top-1':>18}"
    )
    for count in queries:
        cells = [f"{count:13} {figures[f'cost_{count}']:24.2f} {figures[f'cost_{count}_cpu']:12.2f}"]
        for name in ("f1", "emotion"):
            known = f"{name}_{count}" in figures
            cells.append(
                f"{figures[f'{name}_{count}']:10.3f} ± {figures[f'{name}_{count}_sd']:.3f}" if known else " " * 18
            )
        print(" ".join(f"{cell:>18}" for cell in cells))
    if picture is None or f"f1_{queries[0]}" not in figures:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plot, axis = plt.subplots(figsize=(6.4, 4.2))
    costs = [figures[f"cost_{count}"] for count in queries]
    scores = [figures[f"f1_{count}"] for count in queries]
    axis.errorbar(costs, scores, [figures[f"f1_{count}_sd"] for count in queries], marker="o", capsize=3)
    for count, cost, value in zip(queries, costs, scores, strict=True):
        axis.annotate(str(count), (cost, value), textcoords="offset points", xytext=(6, -12))
    axis.margins(x=0.1)  # the numbers beside the points have no part in the limits
    axis.set_xlabel(f"time of the whole forward pass / time of the tower ({size})")
    axis.set_ylabel("macro AU F1, tiny size, synthetic faces")
    axis.set_title("Queries an action unit: accuracy (mean ± sd over seeds) against cost", loc="left", fontsize=11)
    axis.grid(alpha=0.3)
    plot.tight_layout()
    save_figure(plot, picture)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--size", default="base", choices=("base", "tiny"))
    parser.add_argument("--images", type=int, default=500, help="of the folder; ten times as many for memory")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--au_queries", type=int, help="queries an AU; those of the size unless given")
    parser.add_argument("--batch_size", type=int, default=4, help="of what is compared with; the command finds its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vit_images", type=int, default=8, help="files of a round")
    parser.add_argument("--f1_faces", type=int, default=1600)
    parser.add_argument("--routes_faces", type=int, default=200)
    parser.add_argument("--compare_rows", type=int, default=100_000)
    parser.add_argument("--video_minutes", type=float, default=20, help="of the longer video")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="points of the curve")
    parser.add_argument("--accuracy", type=Path, help="train the curve's points there, or read what is finished")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--picture", type=Path, help="the curve as a PNG")
    given = parser.parse_args(argv)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the command's too
    torch.manual_seed(0)
    model = (given.size, given.au_queries)
    machine = f"{threads} of {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    print(f"{given.size}, {machine}")
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "folder": lambda: folder_over_bare(*model, given.images, given.batch_size, given.rounds),
        "vit": lambda: over_vit_pipeline(*model, given.vit_images, given.batch_size, given.rounds),
        "engines": lambda: engine_speeds(*model, given.batch_size, given.rounds),
        "f1": lambda: int8_f1_loss(given.f1_faces),
        "memory": lambda: memory_ratios(given.images, given.video_minutes),
        "routes": lambda: routes(given.routes_faces),
        "compare": lambda: compare_seconds(given.compare_rows),
        "live": live_fps,
        "sheet": lambda: sheet_seconds(given.rounds),
        "curve": lambda: cost_curve(given.size, given.queries, given.batch_size, given.rounds),
    }
    figures: dict[str, float] = {}

    def keep(**more: float) -> None:
        figures.update(more)
        if given.json is not None:
            run = re.sub(r" --json [^ ,]+", "", ", ".join([*origin().values(), machine]))
            parts = {f"{part}/run": run for part in given.only}
            write_json(given.json, {**(read_json(given.json) or {}), **figures, **parts})

    for part in PARTS:
        if part in given.only:
            keep(**parts[part]())
    if given.accuracy is not None:
        keep(**trained_scores(given.accuracy, given.queries, given.seeds))
    if "curve" in given.only:
        draw_curve(figures, given.queries, given.size, given.picture)
    show(figures, "{:28} {:10.4f}", None)
    return figures


if __name__ == "__main__":
    main()
