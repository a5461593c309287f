"""The whole path on a folder of photographs: faces found, time by stage, and what the model's scores are worth.

python examples/benchmark/photographs.py --photos FOLDER [--labels FILE.csv] [--model NAME] [--part choose|report]
    [--landmarks mediapipe] [--face_alignment] [--points FILE.csv] [--video FILE] [--shards] [--scores] [--copies]
    [--json FILE]

The file of `--json` is the evidence by which `examples/benchmark/reliability.py` grades action units and emotions;
`--scores` measures that alone. `--landmarks FILE.csv`, as `mf2 --landmarks` takes, measures by another chain's points.

Labels: a csv with the columns image (a path below the folder), emotion, and optionally subject and an action unit a
column (AU1, AU12, ...: 0, 1 or empty). Without labels the times alone are measured. One thread unless OMP_NUM_THREADS
says other. `--part` takes one half of the people, by a hash of the subject's name: choices are made on `choose`,
figures are quoted from `report`.

faces_found            share of the photographs in which a face is found
decode_ms, detect_ms, landmarks_ms, align_ms, model_ms, write_ms    CPU milliseconds a photograph, by stage
photos_per_s           photographs a CPU-second of the whole path, the program's start left out
over_face_alignment    CPU time of face-alignment's networks of the same shapes with random weights, over that of
                       detect and landmarks, on the same photographs (with --face_alignment)
large_ms               CPU milliseconds of detection and landmarks at 1920 pixels (every 20th photograph, enlarged)
memory_growth_mb       resident memory at the end over that after a quarter of the photographs
landmark_disagreement  median distance from the 68 points that another chain found (--points: a csv as `mf2 --landmarks`
                       takes), in shares of the outer corners of the eyes; ..._inner: without the jaw line
video_fps              frames of --video a second of the wall clock, analysed with one thread beside the reader's
cold_start_onnx_s      seconds of the installed `mf2 PHOTOGRAPH --engine onnx`, start to end: median of 5, warm disk
au12_happiness_auc ... area under the ROC curve of an AU's score between photographs of an emotion and neutral ones
happiness_auc ...      the same of an emotion's own probability, between its photographs and all others
happiness_recall ...   share of an emotion's photographs that are called by it
emotion_macro_recall   mean recall of the emotions that the labels name; `emotion_chance` is one over their count
..._low, ..._high      95 % interval over people, by 1,000 resamples of them
two_shards_over_one    with --shards: seconds of one process over those of two with half of the photographs each, on a
                       core each, the program's start left out (..._with_start: included; ..._cpu: CPU-seconds of the
                       whole processes, which other work on the machine hardly moves); the merged rows must be equal
shards_rows_difference the largest difference of a number: the last digit depends on which faces share a batch
au12_auc ...           area under the ROC curve by the csv's own action units, where it has them
grey_ blurred_ ...     with --copies: figures of the same photographs made grey, blurred, tiny (a sixth as wide), 16
                       bits deep, or covered over the mouth, and `..._marked`, the share that `quality` marks
model_checksum         of the model's weights, where it is a folder; mediapipe_landmarks: 1 if these were used
"""

import argparse
import csv
import functools
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_NUM_THREADS", "1")
import cv2
import numpy as np
import torch
from report import read_json, write_json
from scipy.stats import rankdata

import mf2face.inference.analyze
import mf2face.inference.media
import processing_mf2.detection
import processing_mf2.image_io
from mf2face.files import checksum
from mf2face.inference.analyze import Options, prepare
from mf2face.inference.faces import GivenLandmarks
from mf2face.inference.media import read_frames
from mf2face.inference.model import EMBEDDED, load_model
from mf2face.inference.rows import RowFile


SIGNS = {
    "Happiness": ("AU12", "AU6", "AU25"),
    "Surprise": ("AU1", "AU2", "AU25", "AU26"),
    "Anger": ("AU4", "AU7", "AU10", "AU23", "AU24"),
    "Disgust": ("AU10", "AU4", "AU9"),
    "Sadness": ("AU15", "AU4", "AU1", "AU17"),
    "Fear": ("AU1", "AU2", "AU4"),
}
"""Action units that belong to an emotion's prototype (EMFACS): their scores should separate it from neutral faces."""
RESAMPLES = 1000
LEAST = 20
"""Photographs of an emotion for it to be counted."""


class Stages:
    """CPU seconds of wrapped functions by stage; of a function inside another one, the inner stage has them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.inner = threading.local()

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        function = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            before, start = getattr(self.inner, "seconds", 0.0), time.thread_time()
            self.inner.seconds = 0.0
            try:
                return function(*given, **named)
            finally:
                spent = time.thread_time() - start
                self.seconds[stage] += spent - self.inner.seconds
                self.inner.seconds = before + spent

        setattr(owner, name, timed)


def half_of(subject: str) -> str:
    return "choose" if hashlib.sha256(subject.encode()).digest()[0] % 2 else "report"


def read_labels(path: Path | None, photos: Path, part: str | None) -> dict[str, dict[str, str]]:
    """Rows of the labels by the photograph's path; without labels, every file of the folder with no row."""
    if path is None:
        return {str(file): {} for file in sorted(photos.rglob("*")) if file.is_file()}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {"image", "emotion"} - set(rows[0] if rows else ())
    if missing:
        raise SystemExit(f"{path}: has no column {' and '.join(sorted(missing))}, expected image, emotion and subject")
    kept = {}
    for row in rows:
        subject = row.get("subject") or row["image"]
        if part in (None, half_of(subject)):
            kept[str(photos / row["image"])] = {**row, "subject": subject}
    return kept


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    ranks, count = rankdata(scores), positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def interval(measure: Callable[[np.ndarray], float], subjects: np.ndarray) -> tuple[float, float]:
    """95 % of a figure over resamples of the people."""
    places = defaultdict(list)
    for place, subject in enumerate(subjects):
        places[subject].append(place)
    groups, random = [np.array(group) for group in places.values()], np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([groups[i] for i in random.integers(len(groups), size=len(groups))])
        with np.errstate(invalid="ignore"):
            values.append(measure(chosen))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def scores(rows: Sequence[dict[str, Any]], labels: dict[str, dict[str, str]]) -> dict[str, float]:
    """Figures of the largest face of each photograph."""
    faces = {row["input"]: row for row in reversed(rows) if row["face_id"] == row["face_id"]}
    known = [(row, labels[name]) for name, row in faces.items() if labels.get(name, {}).get("emotion")]
    if not known:
        return {}
    subjects = np.array([label["subject"] for _, label in known])
    emotion = np.array([label["emotion"] for _, label in known])
    figures = {}

    def add(name: str, measure: Callable[[np.ndarray], float]) -> None:
        figures[name] = measure(np.arange(len(known)))
        figures[f"{name}_low"], figures[f"{name}_high"] = interval(measure, subjects)

    counts = Counter(emotion)
    for name, units in SIGNS.items():
        for unit in units:
            column = f"AU{int(unit[2:]):02d}"
            if column not in known[0][0] or min(counts[name], counts["Neutral"]) < LEAST:
                continue
            values = np.array([row[column] for row, _ in known])

            def separates(chosen: np.ndarray, values: np.ndarray = values, name: str = name) -> float:
                chosen = chosen[np.isin(emotion[chosen], (name, "Neutral"))]
                return auc(values[chosen], emotion[chosen] == name)

            add(f"{unit.lower()}_{name.lower()}_auc", separates)
    asked = [name for name in counts if counts[name] >= LEAST and name in known[0][0]]
    if len(asked) > 1:
        shares = np.array([[row[name] for name in asked] for row, _ in known])
        answers = shares.argmax(1)

        def recall(chosen: np.ndarray, names: Sequence[str] = asked) -> float:
            of = {name: chosen[emotion[chosen] == name] for name in names}
            recalls = [(answers[rows] == asked.index(name)).mean() for name, rows in of.items() if len(rows)]
            return float(np.mean(recalls)) if recalls else float("nan")

        add("emotion_macro_recall", recall)
        for place, name in enumerate(asked):
            add(f"{name.lower()}_recall", functools.partial(recall, names=[name]))
            add(f"{name.lower()}_auc", lambda rows, p=place, n=name: auc(shares[rows, p], emotion[rows] == n))
        figures["emotion_chance"] = 1 / len(asked)
    for column in sorted(name for name in known[0][1] if name.startswith("AU")):
        score = f"AU{int(column[2:]):02d}"
        truth = np.array([label[column] or "-1" for _, label in known]).astype(float)
        if score not in known[0][0] or min((truth == 0).sum(), (truth == 1).sum()) < LEAST:
            continue
        values = np.array([row[score] for row, _ in known])

        def agrees(chosen: np.ndarray, values: np.ndarray = values, truth: np.ndarray = truth) -> float:
            chosen = chosen[truth[chosen] >= 0]
            return auc(values[chosen], truth[chosen] == 1)

        add(f"{column.lower()}_auc", agrees)
    return figures


def run(
    labels: dict[str, dict[str, str]], model: str | None, landmarks: str
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of every face, and the figures of the path."""
    loaded = load_model(model, device="cpu")
    options = Options(loaded, landmarks=landmarks, device="cpu")
    analysis = prepare(list(labels), options)
    analysis.rows_of(list(read_frames(list(labels)[:4], analysis.sampling)))  # loads and warms
    analysis = prepare(list(labels), options)
    stages, pipeline = Stages(), loaded.pipeline
    stages.wrap(mf2face.inference.media, "read_image", "decode")
    stages.wrap(processing_mf2.detection, "_find_boxes", "detect")
    stages.wrap(processing_mf2.detection.MediaPipeDetector, "_mesh", "landmarks")
    stages.wrap(pipeline, "preprocess", "align")
    stages.wrap(pipeline.model, "forward", "model")
    stages.wrap(RowFile, "add", "write")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = RowFile(Path(folder) / "rows.csv", analysis.columns, analysis.about)
        add = file.add
        memory: list[float] = []

        def keep(chunk: list[dict[str, Any]]) -> None:
            rows.extend(chunk)
            add(chunk)
            if len(rows) > len(labels) / 4 or not memory:
                memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

        file.add = keep
        start = time.process_time()
        summary = analysis.run(file)
        spent = time.process_time() - start
        file.close(finished=True)
    found = {row["input"] for row in rows if row["face_id"] == row["face_id"]}
    figures = {"photographs": len(labels), "faces_found": len(found) / len(labels), "left_out": len(summary.skipped)}
    figures |= {f"{name}_ms": 1000 * seconds / len(labels) for name, seconds in stages.seconds.items()}
    figures["memory_growth_mb"] = memory[-1] - memory[min(1, len(memory) - 1)]
    return rows, {**figures, "photos_per_s": len(labels) / spent}


def large_ms(labels: dict[str, Any], landmarks: str, width: int = 1920) -> float:
    detector, spent = processing_mf2.detection.DETECTORS[landmarks](), []
    for name in list(labels)[::20]:
        image = processing_mf2.image_io.read_image(name, name="image").transpose(1, 2, 0)
        height = round(image.shape[0] * width / image.shape[1])
        image = cv2.resize(image, (width, height)).transpose(2, 0, 1)
        start = time.process_time()
        detector.detect([image])
        spent.append(time.process_time() - start)
    return 1000 * float(np.mean(spent))


def disagreement(rows: Sequence[dict[str, Any]], points: Path) -> dict[str, float]:
    """From another chain's points of the same face, the one whose centre is nearest."""
    theirs, parts = GivenLandmarks(points).points, {"": slice(0, 68), "_inner": slice(17, 68)}
    distances: dict[str, list[float]] = {part: [] for part in parts}
    for row in rows:
        known = theirs.get((row["input"], 0)) or theirs.get((os.path.basename(row["input"]), 0))
        if known and row["face_id"] == 0:
            ours = np.array([[row[f"x_{k}"], row[f"y_{k}"]] for k in range(68)])
            other = min(known, key=lambda face: np.linalg.norm(face.mean(0) - ours.mean(0)))
            size = np.linalg.norm(other[45] - other[36])
            if np.linalg.norm(other.mean(0) - ours.mean(0)) < size:  # the same face
                for part, chosen in parts.items():
                    distances[part].append(np.linalg.norm(ours[chosen] - other[chosen], axis=1).mean() / size)
    figures = {f"landmark_disagreement{part}": float(np.median(values)) for part, values in distances.items()}
    return {**figures, "landmark_disagreement_faces": len(distances[""])}


def video_fps(video: Path, model: str | None, landmarks: str) -> dict[str, float]:
    analysis = prepare(str(video), Options(load_model(model, device="cpu"), landmarks=landmarks, device="cpu"))
    start = time.perf_counter()
    rows = analysis.run().rows
    return {
        "video_fps": len({row["frame"] for row in rows}) / (time.perf_counter() - start),
        "video_faces": len({row["face_id"] for row in rows}),
    }


def cold_start_onnx_s(photograph: str, model: str | None, landmarks: str, starts: int = 5) -> float:
    load_model(model, engine="onnx")  # exports it, if no run has
    named = ["--model", model] if model else []
    command = [Path(sys.executable).with_name("mf2"), photograph, "--engine", "onnx", "--landmarks", landmarks, *named]
    spent = []
    for _ in range(starts + 1):  # the first warms the disk
        start = time.perf_counter()
        subprocess.run([*command, "--format", "csv", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - start)
    return float(np.median(spent[1:]))


def over_face_alignment(labels: dict[str, Any], chain_ms: float) -> float:
    """CPU time of S3FD and 2DFAN4, one face a photograph, over `chain_ms`; random weights are as slow as trained."""
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.models import FAN

    from processing_mf2.image_io import read_image

    boxes, points = s3fd().eval(), FAN(4).eval()
    spent, chosen = [], list(labels)[:: max(1, len(labels) // 10)]
    for name in chosen:
        image = torch.tensor(read_image(name, name="image"), dtype=torch.float32)[None]
        scale = min(1.0, 640 / max(image.shape[2:]))  # the detector's copy is no larger
        if scale < 1:
            image = torch.nn.functional.interpolate(image, scale_factor=scale)
        start = time.process_time()
        with torch.inference_mode():
            boxes(image)
            points(torch.zeros(2, 3, 256, 256))  # with the mirrored face, as by default
        spent.append(time.process_time() - start)
    return 1000 * float(np.median(spent)) / chain_ms


def _covered(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.rectangle(image, (width // 3, height * 3 // 5), (width * 2 // 3, height * 4 // 5), (40, 40, 40), -1)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": lambda image: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
    "deep": lambda image: image.astype(np.uint16) * 257,
    "tiny": lambda image: cv2.resize(image, None, fx=1 / 6, fy=1 / 6, interpolation=cv2.INTER_AREA),
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), image.shape[1] / 60),
    "covered": _covered,
}
"""Of a BGR image: what happens to photographs. The last covers the mouth of a face in the middle."""


def harmed(labels: dict[str, dict[str, str]], model: str | None, landmarks: str) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kind, change in COPIES.items():
        with tempfile.TemporaryDirectory() as folder:
            copies = {}
            for number, (name, row) in enumerate(labels.items()):
                image = processing_mf2.image_io.read_image(name, name="image").transpose(1, 2, 0)[..., ::-1]
                path = f"{folder}/{number}.png"
                cv2.imwrite(path, change(np.ascontiguousarray(image).astype(np.uint8)))
                copies[path] = row
            rows, path_figures = run(copies, model, landmarks)
        found = scores(rows, copies)
        figures |= {f"{kind}_{name}": found[name] for name in COPY_FIGURES if name in found}
        figures[f"{kind}_faces_found"] = path_figures["faces_found"]
        faces = [row for row in rows if row["face_id"] == row["face_id"]]
        figures[f"{kind}_marked"] = float(np.mean([bool(row["quality"]) for row in faces])) if faces else 0.0
    return figures


COPY_FIGURES = ("au12_happiness_auc", "au25_surprise_auc", "emotion_macro_recall")


def whole_path(labels: dict[str, dict[str, str]], given: argparse.Namespace) -> dict[str, float]:
    rows, figures = run(labels, given.model, given.landmarks)
    figures |= scores(rows, labels)
    figures["mediapipe_landmarks"] = float(given.landmarks == "mediapipe")
    weights = Path(given.model or EMBEDDED) / "model.safetensors"
    if weights.is_file():
        figures["model_checksum"] = checksum(weights)
    if given.copies:
        figures |= harmed(labels, given.model, given.landmarks)
    if given.scores:
        return figures
    figures["large_ms"] = large_ms(labels, given.landmarks)
    figures["cold_start_onnx_s"] = cold_start_onnx_s(next(iter(labels)), given.model, given.landmarks)
    if given.points:
        figures |= disagreement(rows, given.points)
    if given.video:
        figures |= video_fps(given.video, given.model, given.landmarks)
    if given.face_alignment:
        chain = figures.get("detect_ms", 0) + figures.get("landmarks_ms", 0)
        figures["over_face_alignment"] = over_face_alignment(labels, chain)
    return figures


def spent_by(commands: Sequence[list[str]]) -> tuple[float, float]:
    """Wall seconds until all have ended, and CPU seconds of the longest; each runs on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(commands):
        raise SystemExit(f"--shards: got {len(cores)} core, expected {len(commands)}")
    start, running = time.perf_counter(), []
    for command, core in zip(commands, cores, strict=False):
        running.append(subprocess.Popen(command, preexec_fn=lambda core=core: os.sched_setaffinity(0, {core})))
    used = []
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):
            raise SystemExit(f"mf2 ended with {process.returncode}")
        used.append(usage.ru_utime + usage.ru_stime)
    return time.perf_counter() - start, max(used)


def largest_difference(one: Path, other: Path) -> float:
    """Of two files of rows, between numbers; what is no fraction must be equal."""
    largest, tables = 0.0, []
    for path in (one, other):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            tables.append(list(csv.DictReader(file)))
    for row, same in zip(*tables, strict=True):
        for name, value in row.items():
            if "." in value and name not in ("input", "caption") and value != same[name]:
                largest = max(largest, abs(float(value) - float(same[name])))
            elif value != same[name]:
                raise SystemExit(f"{other}: {name} of {row['input']} is {same[name]!r}, expected {value!r}")
    return largest


def two_shards(labels: dict[str, Any], model: str | None, landmarks: str) -> dict[str, float]:
    """Two processes with half of the photographs each, against one with all; the merged rows must be equal."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photographs.txt").write_text("".join(f"{os.path.abspath(name)}\n" for name in labels))
        command = [sys.executable, "-m", "mf2face.inference.cli", str(folder / "photographs.txt"), "--device", "cpu"]
        command += ["--quiet", "--landmarks", landmarks, *([] if model is None else ["--model", model])]
        one, parts = folder / "one.csv", folder / "parts.csv"
        walls, cpus = zip(
            spent_by([[*command, "-o", str(one)]]),
            spent_by([[*command, "-o", str(parts), "--shard", f"{index}/2"] for index in (1, 2)]),
            strict=True,
        )
        names = (one.name, "parts-1-of-2.csv", "parts-2-of-2.csv")
        alone, *shards = (read_json(folder / f"{name}.about.json")["seconds"] for name in names)
        subprocess.run([sys.executable, "-m", "mf2face.inference.cli", "merge", str(parts)], check=True)
        difference = largest_difference(one, parts)
        if difference > 1e-5:
            raise SystemExit(f"--shards: the rows of two shards differ by {difference} from those of one run")
    figures = {"two_shards_over_one": alone / max(shards), "two_shards_over_one_with_start": walls[0] / walls[1]}
    return {**figures, "two_shards_over_one_cpu": cpus[0] / cpus[1], "shards_rows_difference": difference}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--part", choices=("choose", "report"))
    parser.add_argument("--landmarks", default="mediapipe")
    parser.add_argument("--face_alignment", action="store_true", help="also time face-alignment's networks (slow)")
    parser.add_argument("--points", type=Path, help="landmarks of the same photographs by another chain")
    parser.add_argument("--video", type=Path)
    parser.add_argument("--shards", action="store_true", help="measure two_shards_over_one alone; needs two cores")
    parser.add_argument("--scores", action="store_true", help="leave out what is measured about time alone")
    parser.add_argument("--copies", action="store_true", help="also grey, blurred, tiny, deep and covered copies")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cv2.setNumThreads(int(os.environ["OMP_NUM_THREADS"]))
    labels = read_labels(given.labels, given.photos, given.part)
    figures = two_shards(labels, given.model, given.landmarks) if given.shards else whole_path(labels, given)
    for name, value in figures.items():
        if not name.endswith(("_low", "_high")):
            around = (
                f"  {figures[f'{name}_low']:.3f} to {figures[f'{name}_high']:.3f}" if f"{name}_low" in figures else ""
            )
            print(f"{name:28} {value:10.3f}{around}")
    write_json(given.json, figures)
    return figures


if __name__ == "__main__":
    main()
