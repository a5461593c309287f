"""Images, folders, videos or a camera in, a row a face out: in small steps, so that memory never grows."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

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
from mf2face.inference.media import Frame, Sampling, count_frames, find_inputs, read_frames
from mf2face.inference.model import AnalysisModel, load_model
from mf2face.inference.rows import POSE, OutputError, RowFile, Summary, box_of, first_line, format_of
from processing_mf2.detection import DETECTORS
from processing_mf2.landmarks import TEMPLATES
from processing_mf2.results import NotFiniteError


_MOST_BYTES = 96 * 2**20
"""Decoded bytes of a chunk, unless a single frame has more. Two chunks are held: one is read, one is analysed."""


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
        settings["thresholds"] = {name: round(limit, 6) for name, limit in self.thresholds.items()}
        facts = {"synthetic": self.model.synthetic, "trained_on": self.model.trained_on, "mf2_version": VERSION}
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
            self.inputs, self.sampling, note=summary.skip, after=lambda name: places.get(os.path.abspath(name))
        )
        add = summary.rows.extend if sink is None else sink.add
        bar = _progress_bar(count_frames(self.inputs, self.sampling)) if self.progress else None
        try:
            for chunk in _ahead(frames, lambda: self.batch.size):
                add(self.rows_of(chunk))
                summary.seconds, summary.batch_size = time.monotonic() - start, self.batch.size
                if bar is not None:
                    bar.update(len(chunk))
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

    def rows_of(self, chunk: Sequence[Frame]) -> list[dict[str, Any]]:
        faces = self.source.faces(chunk)
        seen = [(frame, of) for frame, of in zip(chunk, faces, strict=True) if not isinstance(of, str)]
        self.summary.frames += len(seen)
        answers = iter(self._answers([(frame, face) for frame, of in seen for face in of]))
        rows: list[dict[str, Any]] = []
        for frame, of_frame in zip(chunk, faces, strict=True):
            start = len(rows)
            if isinstance(of_frame, str):
                self.summary.skip(frame.input, of_frame)
                continue
            if self.on_input is not None:
                self.on_input(frame.input)
            good = [(face, answer) for face in of_frame if (answer := self._checked(frame, next(answers))) is not None]
            numbers = self._numbers(frame, [face for face, _ in good])
            self.summary.faces += len(good)
            if not good:
                self.summary.without_face += not of_frame
                rows.append(self.columns.empty_row(frame.input, frame.number, frame.time_s))
            for (face, answer), number in zip(good, numbers, strict=True):
                place = (frame.input, frame.number, frame.time_s, number)
                marks = {"pose": face.pose, "quality": quality_of(frame.pixels, face)}
                rows.append(
                    self.columns.row(*place, face.box, face.score, face.landmarks, face.source, answer, **marks)
                )
                if self.on_face is not None and answer:
                    self.on_face(frame, face, number)
            if self.on_frame is not None:
                self.on_frame(frame, rows[start:])
        return rows

    def _answers(self, items: Sequence[tuple[Frame, Face]]) -> list[Any]:
        if not items:
            return []
        images = [{"image": frame.pixels, "landmarks": face.landmarks if face.given else None} for frame, face in items]
        settings = {"landmark_source": "template", "on_error": "skip", "thresholds": self.thresholds}
        if self.caption:
            settings["captions"] = ["emotion"]
        # On a CPU this thread's own time, which other work on the machine does not lengthen.
        clock = time.thread_time if self.model.device == "cpu" else time.perf_counter
        while True:
            start = clock()
            try:
                answers = self.model.pipeline(images, batch_size=self.batch.size, **settings)
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

    def _checked(self, frame: Frame, answer: Any) -> dict[str, Any] | None:
        """None: the face is left out; empty: its row has its place and NaN, for the model gave no number."""
        name = f"{frame.input}, frame {frame.number}" if frame.is_moving else frame.input
        if not isinstance(answer, Mapping):
            return answer[0]
        self.summary.skip(name, re.sub(r"^inputs\[\d+\]: ", "", answer["error"]["message"]))
        return {} if answer["error"].get("type") == NotFiniteError.__name__ else None

    def _numbers(self, frame: Frame, faces: Sequence[Face]) -> list[int]:
        if not frame.is_moving:
            return list(range(len(faces)))
        if frame.input not in self.trackers:
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


def _ahead(frames: Iterator[Frame], size: Callable[[], int]) -> Iterator[list[Frame]]:
    """Chunks of frames; the next is read in a thread while one is judged. What was read before an error comes first."""
    failed: list[Exception] = []
    stop = threading.Event()

    def take() -> list[Frame]:
        chunk, held = [], 0
        try:
            for frame in frames:
                chunk.append(frame)
                held += frame.pixels.nbytes
                if len(chunk) >= size() or held * (len(chunk) + 1) / len(chunk) > _MOST_BYTES or stop.is_set():
                    break
        except Exception as error:
            failed.append(error)
        return chunk

    pool = ThreadPoolExecutor(1, "mf2-reader")
    try:
        ahead = pool.submit(take)
        while chunk := ahead.result():
            ahead = pool.submit(take)
            yield chunk
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        frames.close()
    if failed:
        raise failed[0]


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
    if aligned + (landmarks is not None) + (detector is not None) > 1:
        raise ValueError("aligned, landmarks, detector: got several, expected one of them: each says where faces are")
    if aligned or landmarks in TEMPLATES:
        source: FaceSource = AlignedCrops("template" if aligned else landmarks)
    elif landmarks is not None and landmarks not in DETECTORS:
        source = GivenLandmarks(landmarks, found[0] if len(found) == 1 and isinstance(found[0], str) else None)
    else:
        source = DetectedFaces(detector or landmarks, "cpu" if device in (None, "auto") else device)
    model = model if isinstance(model, AnalysisModel) else load_model(model, adapter, device, engine)
    return Analysis(found, model, source, sampling=sampling, **settings)


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
    """
    if output is not None and not hasattr(output, "add"):
        format = format_of(output, format)  # before the model is loaded
    where = {"aligned": aligned, "landmarks": landmarks, "detector": detector, "device": device, "engine": engine}
    settings = {"caption": caption, "thresholds": thresholds, "batch_size": batch_size, "progress": progress}
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
