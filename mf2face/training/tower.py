"""Training of a vision tower from scratch: by what rendering knows of a face, or by labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from datasets import Dataset, Image
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import CANONICAL_FACE
from mf2face.data.examples import as_image
from mf2face.data.synthetic.rendering import SEEN
from modeling_mf2.loading import check_unused
from modeling_mf2.losses import classification_losses, masked_mean, row_weight
from modeling_mf2.modeling_mf2 import MF2PreTrainedModel
from modeling_mf2.vision import MF2VisionTower
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.crops import crop_plan, normalize_crops
from processing_mf2.geometry import transform_points
from processing_mf2.image_io import read_image
from processing_mf2.processing_mf2 import MF2Processor


# Normalised pixels: smaller variation within a patch is noise, and not to be magnified.
_FLAT = 0.1
_MOST_HIDDEN = 0.6
_IDENTITY_SIZE, _IDENTITY_TEMPERATURE = 64, 0.2
_READOUT = 32
"""Channels of each token that the readouts of the whole face see."""
_WEIGHTS = {
    **{"au": 2.0, "emotion": 0.5, "landmark": 20.0, "pixel": 0.5},
    **{"part": 0.5, "depth": 1.0, "normal": 1.0, "identity": 0.1},
}


def patches_of(images: torch.Tensor, size: int) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, patches, channels * size * size), in the tower's order of tokens."""
    return nn.functional.unfold(images, size, stride=size).transpose(1, 2)


def hide_patches(images: torch.Tensor, size: int) -> torch.Tensor:
    """Greys out patches: a random share of every second image, up to `_MOST_HIDDEN`."""
    batch, _, height, width = images.shape
    share = (2 * _MOST_HIDDEN * torch.rand(batch, 1, 1, 1, device=images.device) - _MOST_HIDDEN).clamp_min(0)
    kept = torch.rand(batch, 1, height // size, width // size, device=images.device) >= share
    return images * nn.functional.interpolate(kept.to(images.dtype), scale_factor=size)


def identity_loss(features: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
    """Supervised contrast of unit vectors (rows, size): rows of one person are near, others far. Rows of people who are
    seen once are left out."""
    logits = features @ features.T / _IDENTITY_TEMPERATURE
    itself = torch.eye(len(people), dtype=torch.bool, device=people.device)
    same = (people[:, None] == people[None]) & ~itself
    likelihood = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    counts = same.sum(1)
    return masked_mean(-torch.where(same, likelihood, 0.0).sum(1) / counts.clamp_min(1), counts > 0)


@dataclass
class MF2TowerOutput(ModelOutput):
    """loss: the sum of what is given, weighted by `_WEIGHTS`."""

    loss: torch.Tensor | None = None
    au: torch.Tensor | None = None
    emotion: torch.Tensor | None = None
    landmark: torch.Tensor | None = None
    part: torch.Tensor | None = None
    depth: torch.Tensor | None = None
    normal: torch.Tensor | None = None
    identity: torch.Tensor | None = None
    pixel: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None
    landmark_points: torch.Tensor | None = None
    part_logits: torch.Tensor | None = None
    surface: torch.Tensor | None = None


class MF2ForTowerTraining(MF2PreTrainedModel):
    """The tower with readouts of landmarks, parts, surface, person and hidden patches; only `model.vision` is kept.

    With `vision_config.label_taught` it learns action units, emotion and landmarks instead.
    """

    base_model_prefix = "vision"

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        vision = config.vision_config
        if vision.frozen:
            raise ValueError("vision_config.frozen: got True, expected False: a frozen tower cannot be trained")
        self.vision = MF2VisionTower(vision)
        width, taught = vision.hidden_size, vision.label_taught
        self.channels = 1 if vision.do_grayscale else 3
        self.reduce = nn.Linear(width, _READOUT)
        self.dropout = nn.Dropout(0.3 if taught else 0.1)
        face = vision.grid_size**2 * _READOUT
        self.units = nn.Linear(face, len(config.action_units)) if taught and config.action_units else None
        self.emotion = nn.Linear(face, len(config.emotions)) if taught and config.emotions else None
        self.landmarks = nn.Linear(face, 68 * 2)
        if not taught:
            self.dense = nn.Linear(width, len(SEEN) + 4 + self.channels * vision.patch_size**2)
            self.person = nn.Linear(width, _IDENTITY_SIZE)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module.in_features == self.landmarks.in_features:  # a readout
            init.normal_(module.weight, std=0.1 * module.in_features**-0.5)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        landmarks: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        parts: torch.Tensor | None = None,
        surface: torch.Tensor | None = None,
        person: torch.Tensor | None = None,
        **kwargs: object,
    ) -> MF2TowerOutput:
        r"""
        parts (`(batch, tokens, SEEN)`): shares of what is seen in each token. surface (`(batch, tokens, 4)`): its depth
            and normal; NaN where nothing is near. person (`(batch,)`): a number each.
        """
        check_unused(self, kwargs)
        vision = self.config.vision_config
        hides = self.training and not vision.label_taught
        tokens = self.vision(hide_patches(pixel_values, vision.patch_size) if hides else pixel_values)
        tokens = tokens[:, vision.num_prefix_tokens :]
        face = self.dropout(nn.functional.gelu(self.reduce(tokens)).flatten(1))
        mean_face = 2 * torch.tensor(CANONICAL_FACE, device=face.device) - 1  # the crop spans -1 to 1
        output = MF2TowerOutput(
            au_logits=self.units(face) if self.units is not None else None,
            emotion_logits=self.emotion(face) if self.emotion is not None else None,
            landmark_points=mean_face + self.landmarks(face).view(-1, 68, 2).float(),
        )
        labels = (output.emotion_logits, emotion_labels, output.au_logits, au_labels)
        parts_of_loss, weight = classification_losses(self.config, *labels), row_weight(len(tokens))
        if landmarks is not None:
            places = 2 * landmarks.float() / vision.image_size - 1
            error = nn.functional.smooth_l1_loss(output.landmark_points, places, beta=0.02)
            parts_of_loss["landmark"] = weight * error
        if not vision.label_taught:
            found = self.dense(tokens).float().split([len(SEEN), 4, self.dense.out_features - len(SEEN) - 4], -1)
            output.part_logits, output.surface = found[0], found[1]
            if parts is not None:
                shares = parts.float().transpose(1, 2)
                parts_of_loss["part"] = weight * nn.functional.cross_entropy(found[0].transpose(1, 2), shares)
            if surface is not None:
                parts_of_loss |= {name: weight * part for name, part in _surface_losses(found[1], surface).items()}
            if person is not None:
                features = nn.functional.normalize(self.person(tokens.mean(1)).float(), dim=-1)
                parts_of_loss["identity"] = weight * identity_loss(features, person)
            if hides:
                whole = patches_of(pixel_values[:, : self.channels].float(), vision.patch_size)
                whole = (whole - whole.mean(-1, keepdim=True)) / (whole.std(-1, keepdim=True) + _FLAT)
                parts_of_loss["pixel"] = weight * nn.functional.mse_loss(found[2], whole)
        for name, part in parts_of_loss.items():
            output[name] = part
        output.loss = sum(_WEIGHTS[name] * part for name, part in parts_of_loss.items()) if parts_of_loss else None
        return output


def _surface_losses(found: torch.Tensor, surface: torch.Tensor) -> dict[str, torch.Tensor]:
    near = surface[..., 0].isfinite()
    surface = torch.where(near[..., None], surface.float(), 0.0)
    depth = nn.functional.smooth_l1_loss(found[..., 0], surface[..., 0], beta=0.1, reduction="none")
    facing = 1 - nn.functional.cosine_similarity(found[..., 1:], surface[..., 1:], dim=-1)
    return {"depth": masked_mean(depth, near), "normal": masked_mean(facing, near)}


_TRUTH = ("part_mask", "depth", "normals")


class TowerExamples(torch.utils.data.Dataset):
    """Rows as examples of `MF2ForTowerTraining`: crops as the processor makes them, and what is known of them in the
    crop. Truths of rendering are used where the data set has them.

    In training the second half of each batch are other images of the people in its first half.
    """

    def __init__(
        self, dataset: Dataset, processor: MF2Processor, grid: int, augment: MF2Augmentation | None, seed: int
    ) -> None:
        present = set(dataset.column_names)
        if missing := {"image", "landmarks"} - present:
            raise ValueError(f"dataset: has no {sorted(missing)}, expected them for --task tower")
        self.image_processor, self.grid, self.augment, self.seed = processor.image_processor, grid, augment, seed
        self.settings = SimpleNamespace(**self.image_processor.resolved_settings({}))
        self.images = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
        points = dataset.with_format("numpy")
        self.landmarks = np.asarray(points["landmarks"][:], np.float32)
        self.exact = np.asarray(points["exact_landmarks"][:]) if "exact_landmarks" in present else self.landmarks
        self.people = np.unique(dataset["subject"][:], return_inverse=True)[1] if "subject" in present else None
        self.masks = self.surface = None
        if present.issuperset(_TRUTH):
            self.masks = dataset.select_columns(["part_mask"]).cast_column("part_mask", Image(decode=False))
            depth, normals = (np.asarray(points[name][:], np.float32) for name in ("depth", "normals"))
            self.surface = np.concatenate([depth[..., None], normals], -1).astype(np.float16)
        self.epoch, self.captions, self.labels = 0, [], []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        indexes = [int(index) for index in indexes]
        if self.augment is not None and self.people is not None:
            indexes = self._with_partners(indexes)
        images, masks = self.images[indexes]["image"], None
        if self.masks is not None:
            masks = [_decode(mask["bytes"]) for mask in self.masks[indexes]["part_mask"]]
        crops, examples = [], []
        for place, index in enumerate(indexes):
            crop, example = self._example(index, as_image(images[place]), None if masks is None else masks[place])
            crops.append(crop)
            examples.append(example)
        for example, pixels in zip(examples, normalize_crops(crops, self.settings), strict=True):
            example["pixel_values"] = torch.from_numpy(pixels)
        return examples

    def _with_partners(self, indexes: list[int]) -> list[int]:
        rng, half = np.random.default_rng((self.seed, self.epoch, indexes[0])), len(indexes) // 2
        order = np.argsort(self.people, kind="stable")
        starts = np.searchsorted(self.people[order], np.arange(self.people.max() + 2))
        people = self.people[indexes[:half]]
        partners = order[rng.integers(starts[people], starts[people + 1])]
        return [*indexes[:half], *partners.tolist(), *indexes[2 * half :]]

    def _example(self, index: int, image: Any, mask: np.ndarray | None) -> tuple[np.ndarray, dict[str, Any]]:
        pixels, size = read_image(image), self.settings.size
        matrix, _ = crop_plan(pixels, self.landmarks[index].astype(np.float64), self.settings)
        exact, warp = self.exact[index].astype(np.float64), self.image_processor.warp
        draw = None
        if self.augment is None:
            crop, points = warp(pixels, matrix, *size), transform_points(matrix, exact)
        else:
            draw = self.augment.draw(self.seed * 1_000_003 + self.epoch, index)
            crop, _ = draw.cut(warp, pixels, exact, matrix, *size)
            matrix = draw.matrix(*size) @ matrix
            points = draw.reorder_landmarks(transform_points(matrix, exact))  # without the error of a detector
        example = {"landmarks": torch.tensor(points, dtype=torch.float32), "index": torch.tensor(index)}
        if self.people is not None:
            example["person"] = torch.tensor(self.people[index])
        if mask is not None:
            example["parts"] = torch.from_numpy(part_shares(mask, matrix, size.height, self.grid))
            surface = surface_in_crop(self.surface[index], matrix, pixels.shape[1], size.height, self.grid)
            example["surface"] = torch.from_numpy(surface)
        return crop, example


def _decode(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def _from_centres(matrix: np.ndarray) -> np.ndarray:
    """OpenCV counts from the first pixel's centre."""
    shifted = matrix[:2].copy()
    shifted[:, 2] += matrix[:2, :2].sum(1) / 2 - 0.5
    return shifted


def part_shares(mask: np.ndarray, matrix: np.ndarray, size: int, grid: int) -> np.ndarray:
    """A mask of SEEN in an image -> (grid * grid, SEEN): what is seen in each token of its crop."""
    crop = cv2.warpAffine(mask, _from_centres(matrix), (size, size), flags=cv2.INTER_NEAREST)
    cell = size // grid
    crop = crop[: grid * cell, : grid * cell].reshape(grid, cell, grid, cell).transpose(0, 2, 1, 3)
    counts = crop.reshape(grid * grid, cell * cell)[..., None] == np.arange(len(SEEN), dtype=np.uint8)
    return counts.mean(1, dtype=np.float32)


def surface_in_crop(surface: np.ndarray, matrix: np.ndarray, side: int, size: int, grid: int) -> np.ndarray:
    """Depth and normals (cells, cells, 4) of an image of `side` pixels -> (grid * grid, 4) in its crop; NaN where less
    than half of a token is near."""
    near = np.isfinite(surface[..., :1]).astype(np.float32)
    known = np.concatenate([np.nan_to_num(surface.astype(np.float32)) * near, near], -1)
    to_cells = np.diag([grid / size, grid / size, 1]) @ matrix @ np.diag([side / len(surface)] * 2 + [1])
    known = cv2.warpAffine(known, _from_centres(to_cells), (grid, grid), flags=cv2.INTER_LINEAR).reshape(-1, 5)
    near = known[:, 4:]
    made = np.where(near >= 0.5, known[:, :4] / np.maximum(near, 1e-3), np.nan)
    turn = matrix[:2, :2] / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    made[:, 1:3] = made[:, 1:3] * (1, -1) @ turn.T * (1, -1)  # a normal's y points up
    return made.astype(np.float32)


TOWER_FIGURES = {
    "tower/landmark_error": "error of its landmarks, as a share of the distance of the eyes' outer corners",
    "tower/part_accuracy": "share of tokens whose commonest part of the face is right",
    "tower/depth_error": "error of its depth, in decimetres",
}


def tower_scores(model: MF2ForTowerTraining, examples: TowerExamples, batch: int = 64) -> dict[str, float]:
    """`TOWER_FIGURES` of test images."""
    sums, counts = dict.fromkeys(("landmark_error", "part_accuracy", "depth_error"), 0.0), {}
    was_training = model.training
    model.eval()
    for start in range(0, len(examples), batch):
        rows = examples.__getitems__(range(start, min(start + batch, len(examples))))
        given = {name: torch.stack([row[name] for row in rows]).to(model.device) for name in rows[0] if name != "index"}
        with torch.no_grad():
            output = model(**given)
        places = 2 * given["landmarks"] / model.config.vision_config.image_size - 1
        eyes = (places[:, 36] - places[:, 45]).norm(dim=-1)
        parts = {"landmark_error": (output.landmark_points - places).norm(dim=-1).mean(1) / eyes}
        if "parts" in given:
            parts["part_accuracy"] = (output.part_logits.argmax(-1) == given["parts"].argmax(-1)).float().flatten()
            depth = given["surface"][..., 0]
            parts["depth_error"] = (output.surface[..., 0] - depth).abs()[depth.isfinite()]
        for name, values in parts.items():
            sums[name] += float(values.sum())
            counts[name] = counts.get(name, 0) + values.numel()
    model.train(was_training)
    return {f"tower/{name}": sums[name] / count for name, count in counts.items() if count}
