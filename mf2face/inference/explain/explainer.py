"""Explains a face: decisions, attention of the queries, sentences, and the effect of hiding an action unit's region.

Attention weights are computed beside the model, from the inputs of its cross-attention: outputs, weights and the
attention implementation (eager, sdpa, flash) stay as they are.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import REGION_RULES
from mf2face.inference.explain.face_page import EMOTION, Explanation, Occlusion, face_outline
from mf2face.inference.faces import DetectedFaces, Detector, Face, known_face
from mf2face.inference.media import Frame
from mf2face.inference.model import AnalysisModel, load_model
from modeling_mf2.regions import face_axes, region_centres, region_points, sample_grid
from processing_mf2.geometry import alignment_matrix, resize_matrix, warp
from processing_mf2.image_io import read_image


@dataclass(frozen=True)
class FaceAttention:
    """Attention of a batch of faces on the patch grid; each map sums to 1."""

    units: torch.Tensor | None
    """(faces, AU, side, side): queries of each AU; zero outside its region"""
    face: torch.Tensor | None
    """(faces, side, side): emotion queries, without tokens that have no place (class, registers)"""
    corners: torch.Tensor | None
    """(faces, AU, 2, 4, 2): the two squares of an AU's region, in crop pixels"""


@contextlib.contextmanager
def recorded_attention(branch: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yields a list that fills with cross-attention weights (rows, heads, queries, tokens), one a layer and pass."""
    recorded: list[torch.Tensor] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        queries, tokens, mask = inputs
        keys, _ = module.key_values(tokens) if isinstance(tokens, torch.Tensor) else tokens
        queries = module.q_proj(queries).unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        scores = queries @ keys.transpose(-1, -2) * module.scaling
        recorded.append(nn.functional.softmax(scores if mask is None else scores + mask, -1, dtype=torch.float32))

    layers = [layer.cross_attention for layer in branch.qformer.layers]
    hooks = [layer.register_forward_hook(record) for layer in layers if layer is not None]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _token_points(config: MF2Config, landmarks: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the AU tokens, (faces, AU, tokens, 2), and centres of the regions, (faces, AU, 2, 2), in cells."""
    cells = landmarks.float() / (config.vision_config.image_size / side)
    rules = [REGION_RULES[name] for name in config.action_units]
    averages = torch.zeros(len(rules), 2, 68, device=cells.device)
    for row, rule in enumerate(rules):
        for centre, points in enumerate((rule.first, rule.second)):
            averages[row, centre, list(points)] = 1 / len(points)
    centres = region_centres(cells, averages, torch.tensor([rule.down for rule in rules], device=cells.device))
    return region_points(cells, centres, config.region_grid, config.region_window), centres


def reading_weights(config: MF2Config, landmarks: torch.Tensor, side: int) -> torch.Tensor:
    """(faces, AU, tokens, side * side): bilinear weights with which AU tokens are sampled from the patch grid."""
    points, _ = _token_points(config, landmarks, side)
    cells = torch.eye(side * side, device=points.device).view(1, side, side, -1).expand(len(points), -1, -1, -1)
    return sample_grid(cells, points.flatten(1, 2)).unflatten(1, points.shape[1:3])


def region_corners(config: MF2Config, landmarks: torch.Tensor) -> torch.Tensor:
    """(faces, AU, 2, 4, 2) in crop pixels: corners of the squares that a region's tokens span, in order."""
    _, centres = _token_points(config, landmarks, config.vision_config.image_size)
    right, down, unit = face_axes(landmarks.float())
    half = config.region_window * unit / 2
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    steps = torch.stack([(x * right + y * down) * half for x, y in signs], dim=1)  # (faces, 4, 2)
    return centres[:, :, :, None] + steps[:, None, None]


def maps_of(
    config: MF2Config, landmarks: torch.Tensor, au: list[torch.Tensor], emo: list[torch.Tensor]
) -> FaceAttention:
    """au, emo: weights of each cross-attention layer, from `recorded_attention`."""
    units = face = corners = None
    if au:
        side = config.vision_config.grid_size
        tokens = _mean(au).unflatten(0, (-1, len(config.action_units)))  # (faces, AU, tokens)
        tokens = tokens[..., : config.tokens_per_region]  # a token of the landmarks has no place
        tokens = tokens / tokens.sum(-1, keepdim=True).clamp_min(1e-12)
        units = torch.einsum("bat,batc->bac", tokens, reading_weights(config, landmarks, side))
        units, corners = units.unflatten(-1, (side, side)), region_corners(config, landmarks)
    if emo:
        side = config.vision_config.grid_size
        patches = _mean(emo)[:, config.vision_config.num_prefix_tokens :][:, : side**2]
        face = (patches / patches.sum(-1, keepdim=True).clamp_min(1e-12)).unflatten(-1, (side, side))
    return FaceAttention(units, face, corners)


def _mean(layers: list[torch.Tensor]) -> torch.Tensor:
    """(rows, tokens): mean over layers, heads and queries."""
    return torch.stack([weights.mean((1, 2)) for weights in layers]).mean(0)


@torch.no_grad()
def attention_maps(model: nn.Module, landmarks: torch.Tensor, **images: torch.Tensor) -> tuple[FaceAttention, Any]:
    """Maps, and the model's output of that pass. landmarks: crop pixels; images: `pixel_values` or `image_tokens`."""
    core = getattr(model, "mf2", None)
    if not hasattr(core, "branch_names"):
        raise ValueError(
            f"model: got {type(model).__name__}, which has no queries; expected MF2ForPreTraining or MF2ForFaceAnalysis"
        )
    with contextlib.ExitStack() as stack:
        recorded = {name: stack.enter_context(recorded_attention(core.branch(name))) for name in core.branch_names}
        output = model(landmarks=landmarks, **images)
    return maps_of(model.config, landmarks, recorded.get("au", []), recorded.get("emo", [])), output


CONTROLS = 3


def polygon_mask(polygons: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(size, size) bool: pixels whose centres lie in one of the convex polygons."""
    mask = np.zeros((size, size), np.uint8)
    for polygon in polygons:
        cv2.fillConvexPoly(mask, np.round((polygon - 0.5) * 256).astype(np.int32), 1, shift=8)
    return mask.astype(bool)


def control_masks(mask: np.ndarray, face: np.ndarray) -> list[np.ndarray]:
    """The mask moved to other places of the face: none overlaps the region, and they overlap each other little."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    size, step = len(mask), max(1, len(mask) // 28)
    shifts = [
        (down, right)
        for down in range(-rows[0], size - rows[-1], step)
        for right in range(-columns[0], size - columns[-1], step)
    ]
    moved = [shape for shift in shifts if not ((shape := np.roll(mask, shift, (0, 1))) & mask).any()]
    chosen: list[np.ndarray] = []
    value = face.astype(np.float64)
    while moved and len(chosen) < CONTROLS:
        best = max(moved, key=lambda shape: value[shape].sum())
        if (best & face).sum() < 0.5 * mask.sum():  # hardly on the face
            break
        chosen.append(best)
        value[best] -= 1
        moved = [shape for shape in moved if (shape & best).sum() < 0.5 * mask.sum()]
    return chosen


def hide(crop: torch.Tensor, mask: np.ndarray, face: np.ndarray) -> torch.Tensor:
    """(3, size, size) with the mask filled by the mean colour of the rest of the face."""
    chosen, rest = (torch.from_numpy(part).to(crop.device) for part in (mask, face & ~mask))
    mean = crop[:, rest if rest.any() else ~chosen].mean(1)
    return torch.where(chosen, mean[:, None, None], crop)


@torch.no_grad()
def occlusion_check(
    model: nn.Module, pixel_values: torch.Tensor, landmarks: torch.Tensor, *, batch_size: int = 32
) -> dict[str, Occlusion]:
    """AU -> its probability with its region hidden, and with controls hidden. One face: (3, size, size) and (68, 2)."""
    config = model.config
    if not config.use_au_branch:
        raise ValueError("occlusion: the model has no AU branch, so there is no region to hide")
    size, points = config.vision_config.image_size, landmarks.float().cpu().numpy()
    face = polygon_mask([face_outline(points)], size)
    masks = [polygon_mask(corners, size) for corners in region_corners(config, landmarks[None])[0].cpu().numpy()]
    tries = [[mask, *control_masks(mask, face)] for mask in masks]
    flat = [np.zeros_like(face), *(mask for of_unit in tries for mask in of_unit)]  # the first hides nothing
    rows: list[torch.Tensor] = []
    for start in range(0, len(flat), batch_size):
        crops = torch.stack([hide(pixel_values, mask, face) for mask in flat[start : start + batch_size]])
        logits = model(pixel_values=crops, landmarks=landmarks.expand(len(crops), -1, -1)).au_logits
        rows.append(logits.float().sigmoid().cpu())
    probabilities = torch.cat(rows)
    result, place = {}, 1
    for column, (unit, of_unit) in enumerate(zip(config.action_units, tries, strict=True)):
        hidden, *controls = probabilities[place : place + len(of_unit), column].tolist()
        result[unit] = Occlusion(float(probabilities[0, column]), hidden, tuple(controls))
        place += len(of_unit)
    return result


class Explainer:
    """occlusion: also hide each AU's region; sentences: also generate text, which takes longest."""

    def __init__(
        self,
        model: AnalysisModel,
        *,
        occlusion: bool = False,
        sentences: bool = True,
        thresholds: Any = None,
        confidence: float | None = None,
    ) -> None:
        inner, config = model.pipeline.model, getattr(model.pipeline.model, "config", None)
        if getattr(model, "engine", "torch") != "torch":
            raise ValueError(f"why: got engine {model.engine!r}, expected 'torch': exported models give no attention")
        if not hasattr(getattr(inner, "mf2", None), "branch_names"):
            raise ValueError(
                f"why: got {type(inner).__name__}, which has no queries; expected MF2ForPreTraining or "
                "MF2ForFaceAnalysis"
            )
        if occlusion and not config.use_au_branch:
            raise ValueError(f"occlusion: {model.name} has no AU branch, so there is no region to hide")
        self.model, self.occlusion, self.confidence = model, occlusion, confidence
        self.thresholds = model.pipeline.processor.thresholds(thresholds)
        writes = {"emotion": config.use_emo_branch, "key_au": config.use_emo_branch, "au": config.use_au_branch}
        self.kinds = [kind for kind, able in writes.items() if able and sentences and hasattr(inner, "captioner")]

    @torch.no_grad()
    def explain(self, name: str, pixels: np.ndarray, face: Face, face_id: int = 0) -> Explanation:
        pipeline, config = self.model.pipeline, self.model.pipeline.model.config
        given, size = face.landmarks if face.given else None, config.vision_config.image_size
        ready = pipeline.preprocess({"image": pixels, "landmarks": given}, landmark_source="template")
        pixel_values = ready["pixel_values"].to(pipeline.device, pipeline.dtype)
        seen = pipeline.look({"pixel_values": pixel_values, "landmarks": ready["landmarks"].to(pipeline.device)})
        maps, output = attention_maps(pipeline.model, **seen)
        logits = {key: getattr(output, key, None) for key in ("emotion_logits", "au_logits")}
        (answer,) = pipeline.processor.post_process_face_analysis(
            {key: value for key, value in logits.items() if value is not None},
            self.thresholds,
            confidence=self.confidence,
        )
        if given is not None and pipeline.processor.image_processor.do_align:
            alignment = pipeline.processor.image_processor.alignment
            matrix = alignment_matrix(np.asarray(given, np.float64), size, size, alignment)
        else:
            matrix = resize_matrix(*pixels.shape[1:], size, size)
        units, grids, corners = config.action_units, {}, {}
        if maps.units is not None:
            grids = dict(zip(units, maps.units[0].cpu().numpy(), strict=True))
            corners = dict(zip(units, maps.corners[0].cpu().numpy(), strict=True))
        if maps.face is not None:
            grids[EMOTION] = maps.face[0].cpu().numpy()
        return Explanation(
            name=name,
            face_id=face_id,
            image=_rgb(pixels),
            box=face.box,
            landmarks=np.asarray(face.landmarks, np.float64),
            crop=_rgb(warp(pixels, matrix, size, size).round()),
            matrix=matrix,
            action_units=answer.get("action_units", {}),
            emotions=answer.get("emotions", {}),
            grids=grids,
            corners=corners,
            sentences=_tidy(pipeline.write(seen, self.kinds)[0] if self.kinds else {}),
            about=self.model.about,
            occlusion=occlusion_check(pipeline.model, pixel_values[0], seen["landmarks"][0]) if self.occlusion else {},
        )


def _tidy(written: Any) -> Any:
    """Restores capitals and spacing, which the tokenizer drops."""
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
    """Explains the largest face of an image: `explain("face.png", aligned=True).save_html("why.html")`.

    image: anything that `read_image` reads.
    aligned, landmarks, detector: the image is an aligned crop; 68 points in its pixels; an object with
        `detect(images)`. Without any, the detector that is set up.
    occlusion: also hide each AU's region and compare.
    sentences: also generate text. thresholds: AU thresholds in place of the model's.
    """
    if aligned + (landmarks is not None) + (detector is not None) > 1:
        raise ValueError("aligned, landmarks, detector: got several, expected at most one")
    pixels = read_image(image, name="image")
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "image"
    if aligned or landmarks is not None:
        faces = [known_face(pixels, None if landmarks is None else np.asarray(landmarks, np.float64))]
    else:
        (faces,) = DetectedFaces(detector, device or "cpu").faces([Frame(name, 0, float("nan"), pixels)])
    if isinstance(faces, str):
        raise ValueError(f"image: {faces}")
    if not faces:
        raise ValueError(f"image: no face was found in {name}; pass landmarks, or aligned=True for a crop")
    model = model if isinstance(model, AnalysisModel) else load_model(model, adapter, device)
    explainer = Explainer(model, occlusion=occlusion, sentences=sentences, thresholds=thresholds)
    return explainer.explain(name, pixels, max(faces, key=lambda face: face.area))
