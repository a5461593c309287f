"""Models and adapters, kept loaded, for many users at once with different choices."""

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from demo_limits import Limits, Refused
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights

from configuration_mf2.hub import check_finite_weights
from mf2face.inference.analyze import Analysis
from mf2face.inference.explain.explainer import Explainer
from mf2face.inference.explain.face_page import Explanation
from mf2face.inference.faces import DetectedFaces, Detector, Face, known_face
from mf2face.inference.media import Frame
from mf2face.inference.model import EMBEDDED, AnalysisModel, any_synthetic, is_synthetic, load_model
from modeling_mf2.loading import check_adapter_file
from processing_mf2.pipelines import face_pipeline
from processing_mf2.processing_mf2 import MF2Processor


NO_FACE = "No face was found. If one face fills the picture, turn on the switch below it."
NO_DETECTOR = (
    "This server has no face detector (its weights are not installed). If one upright face fills the picture, turn on "
    "the switch below it; or try a rendered face."
)


@dataclass(frozen=True)
class Picture:
    name: str
    pixels: np.ndarray
    landmarks: tuple[np.ndarray, ...] = ()
    """(68, 2) of each face, if known: of rendered faces"""
    drawn: str | None = None
    """The labels that it was rendered with"""


@dataclass
class Look:
    """The faces of one picture. before: each face's probabilities without the adapter, if one is used."""

    picture: Picture
    faces: list[Explanation]
    before: list[dict[str, float]] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class Adapter:
    label: str
    folder: Path
    base: str
    """Last part of the name of its model: folders may be moved"""
    kind: str

    @staticmethod
    def find(places: Iterable[str | Path]) -> list["Adapter"]:
        """Adapters in folders, and in folders of such folders, without the checkpoints of a run."""
        found: dict[str, Adapter] = {}
        for place in map(Path, places):
            configs = [place / "adapter_config.json"] if (place / "adapter_config.json").is_file() else []
            configs = configs or sorted(place.glob("*/adapter_config.json"))
            if not configs:
                raise ValueError(f"adapters: got {place}, expected an adapter's folder, or a folder of such folders")
            for folder in [config.parent.resolve() for config in configs if "checkpoint-" not in str(config)]:
                check_adapter_file(folder)
                config = PeftConfig.from_pretrained(str(folder))
                check_finite_weights(load_peft_weights(str(folder), device="cpu"), folder)
                base, kind = str(config.base_model_name_or_path).rstrip("/"), getattr(config.peft_type, "value", "")
                label = folder.name if folder.name not in found else f"{folder.parent.name}/{folder.name}"
                found[label] = Adapter(label, folder, base.rpartition("/")[2], str(kind))
        return list(found.values())


class _Loaded:
    """One model with all adapters of one method. The active adapter is a state of the model: the lock is held from
    choosing it to the last answer."""

    def __init__(self, base: AnalysisModel) -> None:
        self.lock, self.base = threading.RLock(), base
        self.wrapped: PeftModel | None = None
        self.adapted: dict[str, tuple[str, AnalysisModel]] = {}

    @contextlib.contextmanager
    def using(self, adapter: Adapter | None) -> Iterator[AnalysisModel]:
        with self.lock:
            if adapter is None:
                with self.wrapped.disable_adapter() if self.wrapped is not None else contextlib.nullcontext():
                    yield self.base
                return
            if adapter.label not in self.adapted:
                self._add(adapter)
            key, model = self.adapted[adapter.label]
            self.wrapped.set_adapter(key, inference_mode=True)
            yield model

    def _add(self, adapter: Adapter) -> None:
        key, folder = f"demo_{len(self.adapted)}", str(adapter.folder)
        if self.wrapped is None:
            self.wrapped = PeftModel.from_pretrained(self.base.pipeline.model, folder, adapter_name=key)
        else:
            self.wrapped.load_adapter(folder, adapter_name=key)
        self.wrapped.eval()
        processor = self.base.pipeline.processor
        if (adapter.folder / "processor_config.json").is_file():
            processor = MF2Processor.from_pretrained(folder)  # its thresholds
        device = self.base.pipeline.device
        pipeline = face_pipeline("face-analysis", self.wrapped, processor, device=device)
        synthetic = any_synthetic(is_synthetic(folder), self.base.synthetic)
        model = replace(self.base, pipeline=pipeline, adapter=adapter.label, synthetic=synthetic)
        self.adapted[adapter.label] = (key, model)


class Engine:
    """models: folders or names on the Hub; the embedded one by default."""

    def __init__(
        self,
        models: Sequence[str] = (),
        adapters: Iterable[str | Path] = (),
        *,
        detector: Detector | None = None,
        device: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits, self.device = limits or Limits(), device
        given = list(models) or [str(EMBEDDED)]
        self.models = {name.rstrip("/").rpartition("/")[2]: name for name in given}
        if len(self.models) < len(given):
            raise ValueError(f"models: got {given}, expected names that end differently: that is what they are called")
        self.adapters = Adapter.find(adapters)
        strange = [one for one in self.adapters if one.base not in self.models]
        if strange:
            raise ValueError(
                f"adapters: {strange[0].folder} belongs to the model {strange[0].base!r}, expected one of "
                f"{list(self.models)}; name its model too (--model)"
            )
        self._loaded: dict[tuple[str, str], _Loaded] = {}
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self.finder: DetectedFaces | None = None
        with contextlib.suppress(OSError):  # without its weights; nothing is downloaded unasked
            self.finder = DetectedFaces(detector, device or "cpu")

    def adapters_of(self, model: str) -> list[str]:
        return [adapter.label for adapter in self.adapters if adapter.base == model]

    @contextlib.contextmanager
    def using(self, model: str, adapter: str | None) -> Iterator[AnalysisModel]:
        """The model with this adapter; no other user's choice changes it within the block."""
        if model not in self.models:
            raise Refused(f"There is no model {model!r} here.")
        chosen = next((one for one in self.adapters if (one.label, one.base) == (adapter, model)), None)
        if adapter is not None and chosen is None:
            raise Refused(f"The model {model} has no adapter {adapter!r} here.")
        # peft cannot mix methods on one model: each method has a copy.
        kinds = [one.kind for one in self.adapters if one.base == model] or [""]
        with self._loading(model, kinds[0] if chosen is None else chosen.kind).using(chosen) as ready:
            yield ready

    def _loading(self, model: str, kind: str) -> _Loaded:
        with self._lock:
            if (model, kind) not in self._loaded:
                base = replace(load_model(self.models[model], device=self.device), name=model)
                self._loaded[model, kind] = _Loaded(base)
            return self._loaded[model, kind]

    def look(
        self, picture: Picture, model: str, adapter: str | None = None, *, aligned: bool = False, words: bool = True
    ) -> Look:
        faces = self._faces(picture, aligned)
        faces.sort(key=lambda face: -face.area)
        kept, before = faces[: self.limits.faces], []
        if adapter is not None:
            with self.using(model, None) as ready:
                before = [_probabilities(one) for one in _explained(ready, picture, kept, words=False)]
        with self.using(model, adapter) as ready:
            return Look(picture, _explained(ready, picture, kept, words), before, len(faces) - len(kept))

    def rows(
        self, picture: Picture, model: str, adapter: str | None = None, *, aligned: bool = False
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """(columns, rows) as the command `mf2` writes them."""
        faces = self._faces(picture, aligned)
        with self.using(model, adapter) as ready:
            analysis = Analysis("picture", ready, _Known(faces))  # its name is no path
            rows = analysis.rows_of([Frame(picture.name, 0, float("nan"), picture.pixels)])
        if analysis.summary.skipped:
            raise Refused(analysis.summary.skipped[0][1])
        return analysis.columns.names, rows

    def _faces(self, picture: Picture, aligned: bool) -> list[Face]:
        if picture.landmarks:
            return [known_face(picture.pixels, points) for points in picture.landmarks]
        frame = Frame(picture.name, 0, float("nan"), picture.pixels)
        if aligned:
            return [known_face(picture.pixels, None)]
        if self.finder is None:
            raise Refused(NO_DETECTOR)
        with self._looking:
            (found,) = self.finder.faces([frame])
        if not found:
            raise Refused(NO_FACE)
        return found


@dataclass
class _Known:
    """A source of faces for `Analysis`: those of one picture."""

    of_picture: list[Face]
    name: str = "picture"

    def faces(self, frames: Sequence[Frame]) -> list[list[Face] | str]:
        return [self.of_picture for _ in frames]


def _explained(model: AnalysisModel, picture: Picture, faces: Sequence[Face], words: bool) -> list[Explanation]:
    explainer = Explainer(model, sentences=words)
    return [explainer.explain(picture.name, picture.pixels, face, number) for number, face in enumerate(faces)]


def _probabilities(face: Explanation) -> dict[str, float]:
    return {**{name: unit["probability"] for name, unit in face.action_units.items()}, **face.emotions}


EXAMPLES: dict[str, tuple[tuple[str, int], ...]] = {
    "surprised": (("studio", 255),),
    "sad": (("studio", 651),),
    "laughing": (("studio", 236),),
    "angry": (("studio", 521),),
    "at rest": (("studio", 116),),
    "two": (("studio", 287), ("studio", 271)),
    "webcam, happy": (("webcam", 455),),
    "webcam, sad": (("webcam", 684),),
}
"""Rendered faces that the embedded model was not trained on: name -> (style, number) of those side by side."""


@functools.cache
def example(name: str, size: int = 224) -> Picture:
    from mf2face.data.synthetic.faces import draw_example

    if name not in EXAMPLES:
        raise Refused(f"There is no rendered face {name!r} here.")
    drawn = [draw_example(number, style=style, seed=2, size=size) for style, number in EXAMPLES[name]]
    pixels = np.hstack([face for face, _ in drawn]).transpose(2, 0, 1)
    points = tuple(landmarks + np.array([place * size, 0]) for place, (_, landmarks) in enumerate(drawn))
    return Picture(f"rendered: {name}", pixels, points, _drawn_with(*EXAMPLES[name][0]) if len(drawn) == 1 else None)


def _drawn_with(style: str, number: int) -> str:
    from configuration_mf2.facs import EMOTIONS, LABEL_SETS
    from mf2face.data.synthetic.faces import synthetic_truth

    truth = synthetic_truth(number + 1, style, seed=2)
    units = zip(LABEL_SETS["mfa"].action_units, truth["au_labels"][-1], strict=True)
    return f"{EMOTIONS[truth['emotion'][-1]]}: {', '.join(name for name, is_active in units if is_active) or 'no AU'}"
