"""Explains a face: decisions, attention of the queries, what the model wrote, and the effect of hiding regions."""

import os
import re
from typing import Any

import numpy as np
import torch

from mf2face.inference.explain.attention import attention_maps
from mf2face.inference.explain.explanation import EMOTION, Explanation
from mf2face.inference.explain.occlusion import occlusion_check
from mf2face.inference.faces import DetectedFaces, Detector, Face, known_face
from mf2face.inference.media import Frame
from mf2face.inference.model import AnalysisModel, load_model
from processing_mf2.geometry import alignment_matrix, resize_matrix, warp
from processing_mf2.image_io import read_image


class Explainer:
    """occlusion: also the check by hiding regions; sentences: False leaves out what takes longest."""

    def __init__(
        self,
        model: AnalysisModel,
        *,
        occlusion: bool = False,
        sentences: bool = True,
        thresholds: Any = None,
    ) -> None:
        self.model = model
        inner, config = model.pipeline.model, getattr(model.pipeline.model, "config", None)
        if getattr(model, "engine", "torch") != "torch":
            raise ValueError(
                f"why: got engine {model.engine!r}, expected 'torch': an exported model shows no attention"
            )
        if not hasattr(getattr(inner, "mf2", None), "branch_names"):
            raise ValueError(
                f"why: got {type(inner).__name__}, which has no queries whose attention could be shown; expected an "
                "MF2 model (MF2ForPreTraining, MF2ForFaceAnalysis) run by torch"
            )
        if occlusion and not config.use_au_branch:
            raise ValueError(f"occlusion: {model.name} has no AU branch, so no AU has a region that could be hidden")
        self.occlusion = occlusion
        self.thresholds = model.pipeline.processor.thresholds(thresholds)
        writes = {"emotion": config.use_emo_branch, "key_au": config.use_emo_branch, "au": config.use_au_branch}
        self.kinds = [kind for kind, able in writes.items() if able and sentences and hasattr(inner, "captioner")]

    @torch.no_grad()
    def explain(self, name: str, pixels: np.ndarray, face: Face, face_id: int = 0) -> Explanation:
        pipeline, size = self.model.pipeline, self.model.pipeline.model.config.vision_config.image_size
        given = face.landmarks if face.given else None
        ready = pipeline.preprocess({"image": pixels, "landmarks": given}, landmark_source="template")
        inputs = {
            "pixel_values": ready["pixel_values"].to(pipeline.device, pipeline.dtype),
            "landmarks": ready["landmarks"].to(pipeline.device),
        }
        seen = pipeline.look(inputs)
        maps, output = attention_maps(pipeline.model, **seen)
        logits = {key: getattr(output, key, None) for key in ("emotion_logits", "au_logits")}
        (answer,) = pipeline.processor.post_process_face_analysis(
            {key: value for key, value in logits.items() if value is not None}, self.thresholds
        )
        sentences = _tidy(pipeline.write(seen, self.kinds)[0] if self.kinds else {})
        checked = {}
        if self.occlusion:
            checked = occlusion_check(pipeline.model, inputs["pixel_values"][0], inputs["landmarks"][0])
        matrix = _crop_matrix(pipeline.processor.image_processor, pixels, given, size)
        crop = warp(pixels, matrix, size, size).round()
        units = pipeline.model.config.action_units
        grids = {} if maps.units is None else dict(zip(units, maps.units[0].cpu().numpy(), strict=True))
        grids |= {} if maps.face is None else {EMOTION: maps.face[0].cpu().numpy()}
        corners = {} if maps.corners is None else dict(zip(units, maps.corners[0].cpu().numpy(), strict=True))
        about = {"model": self.model.name, "adapter": self.model.adapter}
        about |= {"synthetic": self.model.synthetic, "trained_on": self.model.trained_on}
        return Explanation(
            *(name, face_id, _rgb(pixels), face.box, np.asarray(face.landmarks, np.float64), _rgb(crop), matrix),
            *(answer.get("action_units", {}), answer.get("emotions", {}), grids, corners, sentences, about, checked),
        )


def _crop_matrix(processor: Any, pixels: np.ndarray, given: np.ndarray | None, size: int) -> np.ndarray:
    if given is not None and processor.do_align:
        return alignment_matrix(np.asarray(given, np.float64), size, size, processor.alignment)
    return resize_matrix(*pixels.shape[1:], size, size)


def _tidy(written: Any) -> Any:
    """As people set it: the tokenizer knows no capitals, and puts spaces around every sign."""
    if isinstance(written, dict):
        return {name: _tidy(text) for name, text in written.items()}
    text = re.sub(r" ([:;,.)!?])", r"\1", re.sub(r"([(]) ", r"\1", written.strip()))
    text = re.sub(r"\bau(\d+)", r"AU\1", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def explain(
    image: Any,
    *,
    model: AnalysisModel | str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    aligned: bool = False,
    landmarks: Any = None,
    detector: Detector | None = None,
    occlusion: bool = False,
    sentences: bool = True,
    thresholds: Any = None,
    device: str | None = None,
) -> Explanation:
    """Explains the largest face in an image (anything `read_image` reads).

    `explain("face.png", aligned=True).save_html("why.html")`

    aligned, landmarks, detector: the image is a ready-aligned crop; 68 points in its pixels; what has
        `detect(images)`. Without any, the detector of face-alignment.
    occlusion: also hide each AU's region and ask again.
    sentences: also what the model writes. thresholds: of AUs, the model's unless given.
    """
    if aligned + (landmarks is not None) + (detector is not None) > 1:
        raise ValueError("aligned, landmarks, detector: got several, expected one of them: each says where the face is")
    pixels = read_image(image, name="image")
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image"
    if aligned or landmarks is not None:
        found = [known_face(pixels, None if landmarks is None else np.asarray(landmarks, np.float64))]
    else:
        (found,) = DetectedFaces(detector, device or "cpu").faces([Frame(name, 0, float("nan"), pixels)])
    if isinstance(found, str):
        raise ValueError(f"image: {found}")
    if not found:
        raise ValueError(f"image: no face was found in {name}; give its landmarks, or aligned=True for a crop")
    model = model if isinstance(model, AnalysisModel) else load_model(model, adapter, device)
    explainer = Explainer(model, occlusion=occlusion, sentences=sentences, thresholds=thresholds)
    return explainer.explain(name, pixels, max(found, key=lambda face: face.area))
