"""Images, folders, videos or a camera in, a row a face out: in small steps, so that memory never grows."""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import KW_ONLY, dataclass
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
from mf2face.inference.media import Frame, Sampling, count_frames, files_of, find_inputs, read_frames, read_still
from mf2face.inference.model import AnalysisModel, load_model
from mf2face.inference.result import Result
from mf2face.inference.rows import (
    AUTO,
    OutputError,
    RowFile,
    box_of,
    fill_relative,
    first_line,
    format_of,
    has_face,
    unit_column,
)
from mf2face.inference.shards import Shard, fingerprint
from processing_mf2.detection import DETECTORS
from processing_mf2.landmarks import TEMPLATES
from processing_mf2.reliability import conformal_cuts
from processing_mf2.results import NotFiniteError


_MOST_BYTES = 96 * 2**20
"""Decoded bytes of a chunk, unless a single frame has more. Two chunks are held: one is read, one is analysed."""

_MOST_ALIGNED = 64
"""Crops that a chunk holds at once, 0.6 MB each at 224 pixels; further faces are aligned batch by batch."""


class RowSink(Protocol):
    def add(self, rows: Sequence[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True)
class Options:
    """What a run does with its inputs; see [`analyze`]."""

    model: Any = None
    adapter: str | os.PathLike | None = None
    _: KW_ONLY
    aligned: bool = False
    landmarks: str | os.PathLike | None = None
    every: int = 1
    fps: float | None = None
    seconds: float | None = None
    caption: bool = False
    thresholds: Any = None
    confidence: float | None = None
    neutral: str | os.PathLike | None = None
    batch_size: int | None = None
    device: str | None = None
    engine: str = "torch"

    def __post_init__(self) -> None:
        Sampling(self.every, self.fps, self.seconds)  # checks them

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.every, self.fps, self.seconds)


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
        options: Options = Options(),
        *,
        progress: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self.inputs, self.model, self.source = find_inputs(inputs), model, source
        self.options, self.sampling, self.progress = options, options.sampling, progress
        if options.caption:
            model.check_caption()
        processor = model.pipeline.processor
        limits = processor.thresholds(options.thresholds)
        self.thresholds = dict(zip(processor.action_units, limits, strict=True))
        is_calibrated = conformal_cuts(options.confidence, processor.conformal) is not None  # or raises
        self.columns = model.columns(options.caption, is_calibrated, options.neutral is not None)
        self.batch = BatchSize(options.batch_size)
        self.summary = Result()
        self.reader = ThreadPoolExecutor(1, "mf2-reader")
        self.neutral: dict[str, float] | None = None
        """Each AU's probability in the picture of the neutral face. Whose face it is, landmarks cannot tell."""
        self.neutral_marks = ""
        """What speaks against that picture: active AUs, marks of quality."""
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
        if options.neutral not in (None, AUTO):
            self.neutral = self._neutral()

    @property
    def about(self) -> dict[str, Any]:
        """Facts for the file beside the rows; "settings" must be equal for rows to be added to a file."""
        options = self.options
        settings = {"model": self.model.name, "adapter": self.model.adapter, "landmarks": self.source.name}
        settings |= {"every": options.every, "fps": options.fps, "caption": options.caption}
        more = {"engine": self.model.engine if self.model.engine != "torch" else None}
        more["confidence"] = options.confidence
        more |= {"landmark_file": self.source.fingerprint, "neutral": options.neutral and os.fspath(options.neutral)}
        settings |= {name: value for name, value in more.items() if value is not None} | self.shard_settings
        settings["thresholds"] = {name: round(limit, 6) for name, limit in self.thresholds.items()}
        facts = {"synthetic": self.model.synthetic, "trained_on": self.model.trained_on, "mf2_version": VERSION}
        facts |= {"neutral_marks": self.neutral_marks} if self.neutral is not None else {}
        grades = {f"{column}_grade": grade for column, grade in self.model.grades.items()}
        return {"settings": settings, **facts, **grades, "units": self.columns.measures}

    def run(self, sink: RowSink | None = None) -> Result:
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
                rows = [row for _, found in self.answered(chunk) for row in found]
                # The bar steps aside for rows on the same screen.
                with contextlib.nullcontext() if bar is None else bar.external_write_mode(file=sys.stdout):
                    add(rows)
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
        if sink is None and self.options.neutral == AUTO:
            self.note_neutral(fill_relative(summary.rows, self.columns))
        return summary

    def note_neutral(self, why: str) -> None:
        if why:
            self.summary.skip("neutral auto", why)

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
        return [row for _, rows in self.answered(self.prepare(frames)) for row in rows]

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

    def answered(self, chunk: "Chunk") -> Iterator[tuple[Frame, list[dict[str, Any]]]]:
        """Every frame with its rows: one a face, or one without a face; and one for whatever is left out, with why."""
        answers = iter(self._answers(chunk.items))
        for frame, of_frame in zip(chunk.frames, chunk.faces, strict=True):
            if self.on_input is not None:
                self.on_input(frame.input)
            failed = isinstance(of_frame, str)
            checked = [(face, *_checked(next(answers))) for face in ([] if failed else of_frame)]
            good = [one for one in checked if one[1] is not None]
            left_out = [of_frame] if failed else [why for _, answer, why in checked if answer is None]
            rows = self._rows(frame, good)
            empty = (*frame.place, self._scene(frame))
            if not rows and not left_out:
                rows.append(self.columns.empty_row(*empty))
                self.summary.without_face += 1
            rows += [self.columns.empty_row(*empty, error=why) for why in left_out]
            self.summary.frames += 1
            name = frame.input
            if frame.is_moving:
                name, self.summary.noun = f"{name}, frame {frame.number}", "frame"
            for row in rows:
                if row["error"] is not None:
                    self.summary.skip(name, row["error"])
            if self.on_frame is not None:
                self.on_frame(frame, rows)
            yield frame, rows

    def _rows(self, frame: Frame, good: Sequence[tuple[Face, dict, str | None]]) -> list[dict[str, Any]]:
        numbers = self._numbers(frame, [face for face, _, _ in good])
        self.summary.faces += len(good)
        rows: list[dict[str, Any]] = []
        for (face, answer, why), number in zip(good, numbers, strict=True):
            place = (*frame.place, number, face.box, face.score, face.landmarks, face.source, answer)
            marks = {"pose": face.pose, "quality": quality_of(frame.pixels, face), "scene": self._scene(frame)}
            rows.append(self.columns.row(*place, **marks, error=why, neutral=self.neutral))
            if self.on_face is not None and answer:
                self.on_face(frame, face, number)
        return rows

    def _answers(self, items: Sequence[dict[str, Any]]) -> list[Any]:
        if not items:
            return []
        settings = {"landmark_source": "template", "on_error": "skip", "thresholds": self.thresholds}
        if self.options.caption:
            settings["captions"] = ["emotion"]
        if self.options.confidence is not None:
            settings["confidence"] = self.options.confidence
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
        return self.trackers[frame.input].follow([face.box for face in faces], is_cut=frame.is_cut)

    def _scene(self, frame: Frame) -> int:
        return self.trackers[frame.input].scene if frame.is_moving else 0

    def _remember_tracks(self, sink: Any) -> None:
        last = getattr(sink, "last_frames", None)
        if last:
            tracker = self.trackers[sink.last_input] = FaceTracker()
            for scene, rows in last:
                tracker.remember([box_of(row) for row in rows], [int(float(row["face_id"])) for row in rows], scene)
            tracker.next_id = sink.next_id

    def _neutral(self) -> dict[str, float]:
        """Probabilities of the AUs in the picture of the person's neutral face."""
        name, wrong = os.fspath(self.options.neutral), []
        frames = list(read_still(name, name, lambda _, why: wrong.append(why)))
        for row in self.rows_of(frames):
            wrong += [row["error"]] if row["error"] else [] if has_face(row) else ["no face was found"]
        faces, self.summary = self.summary.faces, Result()
        if wrong or faces != 1:
            raise ValueError(f"neutral: {name}: {wrong[0] if wrong else f'got {faces} faces, expected one'}")
        active = [code for code in self.columns.action_units if row[f"{unit_column(code)}_c"] == 1]
        self.neutral_marks = " ".join([*active, row["quality"]]).strip()
        return {code: row[unit_column(code)] for code in self.columns.action_units}


def _progress_bar(total: int | None) -> Any:
    from tqdm.auto import tqdm  # a tenth of a second, which a run without a bar saves

    return tqdm(total=total, desc="faces", unit="image", leave=False)


def _checked(answer: Any) -> tuple[dict[str, Any] | None, str | None]:
    """(answer, why it is missing). None: the face is left out; empty: its row has its place and NaN."""
    if not isinstance(answer, Mapping):
        return answer[0], None
    why = re.sub(r"^inputs\[\d+\]: ", "", answer["error"]["message"])
    return {} if answer["error"].get("type") == NotFiniteError.__name__ else None, why


def prepare(inputs: Any, options: Options, *, detector: Detector | None = None, **settings: Any) -> Analysis:
    """A run that is ready to start; settings: those of `Analysis`."""
    found = find_inputs(inputs)
    only = found[0] if len(found) == 1 and isinstance(found[0], str) else None
    source = face_source(options, detector, only)
    model = options.model
    if not isinstance(model, AnalysisModel):
        model = load_model(model, options.adapter, options.device, options.engine)
    return Analysis(found, model, source, options, **settings)


def face_source(options: Options, detector: Detector | None, only: str | None) -> FaceSource:
    """only: the input of a csv of landmarks that does not name any."""
    landmarks, device = options.landmarks, options.device
    if options.aligned + (landmarks is not None) + (detector is not None) > 1:
        raise ValueError("aligned, landmarks, detector: got several, expected one of them: each says where faces are")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():  # as torch does: one machine may have a process a core
        cv2.setNumThreads(int(threads))
    if options.aligned or landmarks in TEMPLATES:
        return AlignedCrops("template" if options.aligned else landmarks)
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
    confidence: float | None = None,
    neutral: str | os.PathLike | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    engine: str = "torch",
    format: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    shard: str | None = None,
) -> Result:
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
    confidence: such as 0.9: also if each AU is active, at rest or not to be told, and possible emotions.
    neutral: a picture of the person's neutral face, or `auto`: the quiet part of each track of a video. Columns
        `AU12_rel` then have each probability minus the neutral one.
    engine: `torch`; `onnx` or `int8` on a CPU, of a model that is named, not loaded.
    shard: `2/8`: the second of eight parts of the inputs, into an output of its own: `faces-2-of-8.csv`.
    """
    options = Options(
        *(model, adapter),
        **{"aligned": aligned, "landmarks": landmarks, "every": every, "fps": fps, "seconds": seconds},
        **{"caption": caption, "thresholds": thresholds, "confidence": confidence, "neutral": neutral},
        **{"batch_size": batch_size, "device": device, "engine": engine},
    )
    part = None if shard is None else Shard.parse(shard)
    is_file = output is not None and not hasattr(output, "add")
    if is_file:
        format = format_of(output, format)  # before the model is loaded
        output = output if part is None else part.path(output)
    analysis = prepare(inputs, options, detector=detector, progress=progress, shard=part)
    return run_into_file(analysis, output, format=format, overwrite=overwrite) if is_file else analysis.run(output)


def run_into_file(
    analysis: Analysis, output: str | os.PathLike, *, format: str | None = None, overwrite: bool = False
) -> Result:
    """Whatever happens, the rows so far are in the file and the facts beside it."""
    live = any(isinstance(one, int) for one in analysis.inputs)
    if live and not overwrite and os.path.exists(output):
        raise OutputError(f"output: {output} is there, and a camera cannot be continued; name another or overwrite it")
    rows = RowFile(output, analysis.columns, analysis.about, format=format, overwrite=overwrite)
    analysis.summary.output, analysis.summary.continues = output, not live
    finished = False
    try:
        analysis.run(rows)
        finished = True
    finally:
        with contextlib.nullcontext() if finished else contextlib.suppress(OutputError):  # the first error is raised
            rows.close(finished=finished, **analysis.summary.facts())
            analysis.note_neutral(rows.without_neutral)
        if live and not finished and not analysis.summary.frames:  # no camera: nothing to keep
            rows.remove()
            analysis.summary.output = None
    return analysis.summary
