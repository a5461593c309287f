"""Images, folders, videos or a camera in, a row a face out: in small steps, so that memory never grows."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

import cv2

from configuration_mf2.version import VERSION
from mf2face.inference.faces import (
    AlignedCrops,
    DetectedFaces,
    Detector,
    Face,
    FaceSource,
    FaceTracker,
    GivenLandmarks,
    quality_of,
)
from mf2face.inference.media import Frame, Sampling, count_frames, files_of, find_inputs, read_frames
from mf2face.inference.model import AnalysisModel, load_model
from mf2face.inference.rows import POSE, OutputError, RowFile, Summary, box_of, first_line, format_of
from mf2face.inference.shards import Shard, fingerprint
from processing_mf2.detection import DETECTORS
from processing_mf2.landmarks import TEMPLATES
from processing_mf2.results import NotFiniteError


_MOST_BYTES = 96 * 2**20
"""Decoded bytes of a chunk, unless a single frame has more. Two chunks are held: one is read, one is analysed."""

_MOST_ALIGNED = 64
"""Crops that a chunk holds at once, 0.6 MB each at 224 pixels; further faces are aligned batch by batch."""


class RowSink(Protocol):
    def add(self, rows: Sequence[Mapping[str, Any]]) -> None: ...


class BatchSize:
    """Doubles while that makes a face cheaper, then stays; halves when memory runs out."""

    def __init__(self, fixed: int | None = None, most: int = 64) -> None:
        if fixed is not None and (type(fixed) is not int or fixed < 1):
            raise ValueError(f"batch_size: got {fixed!r}, expected a whole number from 1, or none: it finds one itself")
        self.size, self.most, self.settled = fixed or 4, most, fixed is not None
        self.best: float | None = None
        self.costs: list[float] = []

    def learn(self, faces: int, seconds: float) -> None:
        if self.settled or faces < self.size:
            return
        self.costs.append(seconds / faces)
        if len(self.costs) < 3:
            return
        now, self.costs = min(self.costs), []  # the least: the machine may be busy with other things
        if self.best is not None and now > 0.95 * self.best:
            self.size, self.settled = max(1, self.size // 2), True
        elif 2 * self.size > self.most:
            self.settled = True
        else:
            self.best, self.size = now, 2 * self.size

    def shrink(self) -> bool:
        self.size, self.settled, could = max(1, self.size // 2), True, self.size > 1
        return could


@dataclass(frozen=True)
class Chunk:
    frames: Sequence[Frame]
    faces: Sequence[list[Face] | str]
    """Of each frame, or why it cannot be analysed."""
    items: Sequence[dict[str, Any]]
    """What the pipeline takes, face after face: an aligned crop, or an image and landmarks."""


class Analysis:
    """One run. `summary` is true at every moment, also after an exception took the run down."""

    def __init__(
        self,
        inputs: Any,
        model: AnalysisModel,
        source: FaceSource,
        *,
        sampling: Sampling | None = None,
        caption: bool = False,
        thresholds: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self.inputs, self.model, self.source = find_inputs(inputs), model, source
        self.sampling, self.caption, self.progress = sampling or Sampling(), caption, progress
        if caption:
            model.check_caption()
        processor = model.pipeline.processor
        self.thresholds = dict(zip(processor.action_units, processor.thresholds(thresholds), strict=True))
        self.columns = model.columns(caption)
        self.batch = BatchSize(batch_size)
        self.summary = Summary()
        self.reader = ThreadPoolExecutor(1, "mf2-reader")
        self.files, self.shard_settings = self.inputs, {}
        if shard is not None:  # what is wrong with a folder is noted by the first shard alone
            every = list(files_of(self.inputs, *([self.summary.skip] if shard.index == 1 else [])))
            self.files, self.shard_settings = shard.part(every), {"shard": str(shard), "inputs": fingerprint(every)}
        self.trackers: dict[str, FaceTracker] = {}
        self.on_face: Callable[[Frame, Face, int], None] | None = None
        """Called with every face that gets a row, and its number."""
        self.on_frame: Callable[[Frame, list[dict[str, Any]]], None] | None = None
        """Called with every frame and its rows."""
        self.on_input: Callable[[str], None] | None = None
        """Called with every input that has rows, in their order, those of earlier runs too."""

    @property
    def about(self) -> dict[str, Any]:
        """Facts for the file beside the rows; "settings" must be equal for rows to be added to a file."""
        settings = {"model": self.model.name, "adapter": self.model.adapter, "landmarks": self.source.name}
        settings |= {"every": self.sampling.every, "fps": self.sampling.fps, "caption": self.caption}
        if self.model.engine != "torch":
            settings["engine"] = self.model.engine
        if self.source.fingerprint is not None:
            settings["landmark_file"] = self.source.fingerprint
        settings |= self.shard_settings
        settings["thresholds"] = {name: round(limit, 6) for name, limit in self.thresholds.items()}
        facts = {key: self.model.about[key] for key in ("synthetic", "trained_on", "grades")} | {"mf2_version": VERSION}
        return {
            "settings": settings,
            **facts,
            "units": {"FaceRect, x, y": "pixels", "time_s": "seconds", "AU": "0 to 1", ", ".join(POSE): "degrees"},
        }

    def run(self, sink: RowSink | None = None) -> Summary:
        """sink: takes the rows; without one they are in `summary.rows`."""
        summary, done, start = self.summary, getattr(sink, "done", {}), time.monotonic()
        summary.resumed = len(done)
        self._remember_tracks(sink)
        if self.on_input is not None:
            for name in done:
                self.on_input(name)
        places = {os.path.abspath(name): last for name, last in done.items()}
        frames = read_frames(
            self.files, self.sampling, note=summary.skip, after=lambda name: places.get(os.path.abspath(name))
        )
        add = summary.rows.extend if sink is None else sink.add
        bar = _progress_bar(count_frames(self.files, self.sampling)) if self.progress else None
        try:
            for chunk in self.read_ahead(frames):
                add([row for _, rows, _ in self.answered(chunk) for row in rows])
                summary.seconds, summary.batch_size = time.monotonic() - start, self.batch.size
                if bar is not None:
                    bar.update(len(chunk.frames))
                    bar.set_postfix(faces=summary.faces, refresh=False)
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
            raise
        except OSError as error:
            summary.stopped = str(error)
            raise
        finally:
            if bar is not None:
                bar.close()
        return summary

    def read_ahead(self, frames: Iterator[Frame]) -> Iterator["Chunk"]:
        """Chunks whose faces are aligned; a thread makes the next while one is answered. What was read before an error
        comes first."""
        failed: list[Exception] = []
        stop = threading.Event()

        def take() -> Chunk | None:
            chunk, held = [], 0
            try:
                for frame in frames:
                    chunk.append(frame)
                    held += frame.pixels.nbytes
                    full = len(chunk) >= self.batch.size or held * (len(chunk) + 1) / len(chunk) > _MOST_BYTES
                    if full or stop.is_set():
                        break
            except Exception as error:
                failed.append(error)
            return self.prepare(chunk) if chunk and not stop.is_set() else None

        try:
            ahead = self.reader.submit(take)
            while chunk := ahead.result():
                ahead = self.reader.submit(take)
                yield chunk
        finally:
            stop.set()
            ahead.cancel()
            wait([ahead])
            frames.close()
        if failed:
            raise failed[0]

    def rows_of(self, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        return [row for _, rows, _ in self.answered(self.prepare(frames)) for row in rows]

    def prepare(self, frames: Sequence[Frame]) -> "Chunk":
        """Finds faces and aligns them: what a thread does for one chunk while the model answers another."""
        faces = self.source.faces(frames)
        items = [
            {"image": frame.pixels, "landmarks": face.landmarks if face.given else None}
            for frame, of_frame in zip(frames, faces, strict=True)
            if not isinstance(of_frame, str)
            for face in of_frame
        ]
        align = getattr(self.model.pipeline, "preprocess", None)
        for place, item in enumerate(items[: _MOST_ALIGNED if align else 0]):
            with contextlib.suppress(Exception):  # the pipeline meets it again, and names it
                items[place] = align(item, landmark_source="template")
        return Chunk(frames, faces, items)

    def answered(self, chunk: "Chunk") -> Iterator[tuple[Frame, list[dict[str, Any]], list[str]]]:
        """Every frame with its rows, and why it, or a face of it, was left out."""
        self.summary.frames += sum(not isinstance(of, str) for of in chunk.faces)
        answers = iter(self._answers(chunk.items))
        for frame, of_frame in zip(chunk.frames, chunk.faces, strict=True):
            rows, reasons = [], []
            if isinstance(of_frame, str):
                reasons.append(of_frame)
            else:
                rows = self._rows(frame, of_frame, answers, reasons)
            name = f"{frame.input}, frame {frame.number}" if frame.is_moving else frame.input
            for why in reasons:
                self.summary.skip(name, why)
            yield frame, rows, reasons

    def _rows(self, frame: Frame, faces: Sequence[Face], answers: Iterator[Any], reasons: list[str]) -> list[dict]:
        if self.on_input is not None:
            self.on_input(frame.input)
        good = [(face, answer) for face in faces if (answer := _checked(next(answers), reasons)) is not None]
        numbers = self._numbers(frame, [face for face, _ in good])
        self.summary.faces += len(good)
        rows: list[dict[str, Any]] = []
        if not good:
            self.summary.without_face += not faces
            rows.append(self.columns.empty_row(frame.input, frame.number, frame.time_s))
        for (face, answer), number in zip(good, numbers, strict=True):
            place = (frame.input, frame.number, frame.time_s, number)
            marks = {"pose": face.pose, "quality": quality_of(frame.pixels, face)}
            rows.append(self.columns.row(*place, face.box, face.score, face.landmarks, face.source, answer, **marks))
            if self.on_face is not None and answer:
                self.on_face(frame, face, number)
        if self.on_frame is not None:
            self.on_frame(frame, rows)
        return rows

    def _answers(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        if not items:
            return []
        settings = {"landmark_source": "template", "on_error": "skip", "thresholds": self.thresholds}
        if self.caption:
            settings["captions"] = ["emotion"]
        # On a CPU this thread's own time, which other work on the machine does not lengthen.
        clock = time.thread_time if self.model.device == "cpu" else time.perf_counter
        while True:
            start = clock()
            try:
                answers = self.model.pipeline(items, batch_size=self.batch.size, **settings)
            except Exception as error:  # of an item, or of a damaged engine: the others go on
                if type(error).__name__ == "OutOfMemoryError":  # torch's, which is imported only if it runs the model
                    if not self.batch.shrink():
                        raise
                    sys.modules["torch"].cuda.empty_cache()
                    continue
                if len(items) > 1:
                    return [answer for item in items for answer in self._answers([item])]
                return [{"error": {"message": f"the model fails ({type(error).__name__}: {first_line(error)})"}}]
            self.batch.learn(len(items), clock() - start)
            return answers

    def _numbers(self, frame: Frame, faces: Sequence[Face]) -> list[int]:
        if not frame.is_moving:
            return list(range(len(faces)))
        if frame.input not in self.trackers or frame.number == 0:
            self.trackers = {frame.input: FaceTracker()}  # videos come one after the other
        return self.trackers[frame.input].follow([face.box for face in faces])

    def _remember_tracks(self, sink: Any) -> None:
        last = getattr(sink, "last_frames", None)
        if last:
            tracker = self.trackers[sink.last_input] = FaceTracker()
            for rows in last:
                tracker.remember([box_of(row) for row in rows], [int(float(row["face_id"])) for row in rows])
            tracker.next_id = sink.next_id


def _progress_bar(total: int | None) -> Any:
    from tqdm.auto import tqdm  # a tenth of a second, which a run without a bar saves

    return tqdm(total=total, desc="faces", unit="image", leave=False)


def _checked(answer: Any, reasons: list[str]) -> dict[str, Any] | None:
    """None: the face is left out; empty: its row has its place and NaN, for the model gave no number."""
    if not isinstance(answer, Mapping):
        return answer[0]
    reasons.append(re.sub(r"^inputs\[\d+\]: ", "", answer["error"]["message"]))
    return {} if answer["error"].get("type") == NotFiniteError.__name__ else None


def prepare(
    inputs: Any,
    model: AnalysisModel | str | os.PathLike | None,
    adapter: str | os.PathLike | None,
    *,
    aligned: bool,
    landmarks: str | os.PathLike | None,
    detector: Detector | None,
    sampling: Sampling,
    device: str | None,
    engine: str,
    **settings: Any,
) -> Analysis:
    """A run that is ready to start; settings: those of `Analysis`."""
    found = find_inputs(inputs)
    only = found[0] if len(found) == 1 and isinstance(found[0], str) else None
    source = face_source(aligned=aligned, landmarks=landmarks, detector=detector, device=device, only=only)
    model = model if isinstance(model, AnalysisModel) else load_model(model, adapter, device, engine)
    return Analysis(found, model, source, sampling=sampling, **settings)


def face_source(
    *,
    aligned: bool,
    landmarks: str | os.PathLike | None,
    detector: Detector | None,
    device: str | None,
    only: str | None,
) -> FaceSource:
    """only: the input of a csv of landmarks that does not name any."""
    if aligned + (landmarks is not None) + (detector is not None) > 1:
        raise ValueError("aligned, landmarks, detector: got several, expected one of them: each says where faces are")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():  # as torch does: one machine may have a process a core
        cv2.setNumThreads(int(threads))
    if aligned or landmarks in TEMPLATES:
        return AlignedCrops("template" if aligned else landmarks)
    if landmarks is not None and landmarks not in DETECTORS:
        return GivenLandmarks(landmarks, only)
    return DetectedFaces(detector or landmarks, "cpu" if device in (None, "auto") else device)


def analyze(
    inputs: Any,
    output: str | os.PathLike | RowSink | None = None,
    *,
    model: AnalysisModel | str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    aligned: bool = False,
    landmarks: str | os.PathLike | None = None,
    detector: Detector | None = None,
    every: int = 1,
    fps: float | None = None,
    seconds: float | None = None,
    caption: bool = False,
    thresholds: Any = None,
    batch_size: int | None = None,
    device: str | None = None,
    engine: str = "torch",
    format: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    shard: str | None = None,
) -> Summary:
    """Every face in images, folders, videos or a camera, a row each.

    inputs: a path, a list of them, a `.txt` list of paths, or a number for a camera.
    output: `.csv`, `.jsonl` or `.parquet`, which is continued if it is there; or whatever has `add(rows)`; without one
        the rows are in the answer's `rows`.
    model, adapter: a folder or a name on the Hub, or a model loaded by `load_model`; the embedded one unless given.
    aligned, landmarks, detector: images are crops in MF²'s alignment; another alignment's name (`insightface112`,
        `ffhq`), a csv of landmarks or a detector's name (`mediapipe`, `face_alignment`); what has `detect(images)`.
        Without any, the detector that is set up.
    every, fps, seconds: of videos, every n-th frame, or so many a second; at most up to this time.
    caption: also a sentence by the model. thresholds: of AUs, the model's unless given.
    engine: `torch`; `onnx` or `int8` on a CPU, of a model that is named, not loaded.
    shard: `2/8`: the second of eight parts of the inputs, into an output of its own: `faces-2-of-8.csv`.
    """
    part = None if shard is None else Shard.parse(shard)
    if output is not None and not hasattr(output, "add"):
        format = format_of(output, format)  # before the model is loaded
        output = output if part is None else part.path(output)
    where = {"aligned": aligned, "landmarks": landmarks, "detector": detector, "device": device, "engine": engine}
    settings = {"caption": caption, "thresholds": thresholds, "batch_size": batch_size, "progress": progress}
    settings |= {"shard": part}
    analysis = prepare(inputs, model, adapter, sampling=Sampling(every, fps, seconds), **where, **settings)
    if output is None or hasattr(output, "add"):
        return analysis.run(output)
    return run_into_file(analysis, output, format=format, overwrite=overwrite)


def run_into_file(
    analysis: Analysis, output: str | os.PathLike, *, format: str | None = None, overwrite: bool = False
) -> Summary:
    """Whatever happens, the rows so far are in the file and the facts beside it."""
    live = any(isinstance(one, int) for one in analysis.inputs)
    if live and not overwrite and os.path.exists(output):
        raise OutputError(f"output: {output} is there, and a camera cannot be continued; name another or overwrite it")
    rows = RowFile(output, analysis.columns, analysis.about, format=format, overwrite=overwrite)
    analysis.summary.opened, analysis.summary.continues = True, not live
    try:
        analysis.run(rows)
    except BaseException:
        with contextlib.suppress(OutputError):  # what stopped the run is reported, not what followed from it
            rows.close(finished=False, **analysis.summary.facts())
        if live and not analysis.summary.frames:  # no camera: an empty file would be in the way of the next try
            rows.remove()
            analysis.summary.opened = False
        raise
    rows.close(finished=True, **analysis.summary.facts())
    return analysis.summary
