"""What synthetic faces teach about photographs: a small fixed net, trained on synthetic faces alone.

python examples/benchmark/transfer.py --photos FOLDER --labels FILE.csv [--styles studio street webcam]
    [--part choose|report] [--images 12000] [--minutes 10] [--seeds 0 1 2] [--without PART ...] [--json FILE]

FILE.csv: columns image, emotion and, if there are some, subject. `--part` measures on half of the people: choices are
made on `choose`, figures reported on `report`. The photographs are measured on and never learned from. Training
computes in bfloat16 where the CPU does that faster, which is not everywhere: compare figures of one machine. With
several seeds, figures are means, and NAME_sd their deviations.

--without also trains on renders, the first seed alone, that lack one thing or have it the same for all people: figures
`without_PART_...`. What it is worth is what is lost, if that is more than the seeds differ by.

transfer_au12_happiness ... area under the ROC curve of an AU's score between photographs of an emotion and neutral ones
transfer_mean_auc       mean of these
transfer_macro_recall   mean recall over the emotions of which there are enough photographs
train_cpu_s, render_cpu_s    CPU-seconds of training a net, and of making what it learns from
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from photographs import LEAST, SIGNS, auc, read_labels
from report import options, write_json
from torch import nn

from configuration_mf2.facs import EMOTIONS
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.places import Shot
from mf2face.data.synthetic.rendering import Sitter, render_face
from mf2face.data.synthetic.subjects import (
    ACTIVE_FROM,
    FRAMES_PER_SUBJECT,
    STYLES,
    expression,
    gaze,
    habits,
    shot,
    shown_aus,
    sides,
    subject,
)
from mf2face.training.trainer import bfloat16_cost
from processing_mf2.detection import MediaPipeDetector
from processing_mf2.image_io import read_image


SIDE = 112
ANCHORS = np.float32([[28.5, 41.0], [44.5, 41.5], [67.5, 41.5], [83.5, 41.0], [56.0, 66.0]])
"""Eye corners and the base of the nose in the crop: what expressions move least."""


_EVEN = Shot()
_WITHOUT: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "teeth": ({"teeth": (0.03, 0.02, 0.02)}, {}),
    "folds": ({"wrinkles": 0.0}, {}),
    "brows": ({"brow_rest": 0.0, "brow_height": 0.0, "brow_width": 1.0, "brow_arch": 0.7, "brow_density": 0.8}, {}),
    "hair": ({"cut": "bald", "beard": "none", "headwear": "none", "eyewear": "none"}, {}),
    "light": ({}, {name: getattr(_EVEN, name) for name in ("lights", "light_colours", "ambient", "shadow_blur")}),
    "backgrounds": ({}, {"background": _EVEN.background}),
    "camera": ({}, {name: getattr(_EVEN, name) for name in ("blur", "motion", "noise", "shrink", "sharpen", "jpeg")}),
    "pose": ({}, {"yaw": 0.0, "pitch": 0.0, "roll": 0.0}),
}
"""Fields of a person and of a shot that are the same for all."""


class SmallNet(nn.Module):
    """0.8 million parameters; the flattened readout keeps where a thing was seen."""

    def __init__(self, units: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 1), (64, 96, 2), (96, 128, 2), (128, 160, 1)):
            layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(160, 40, 1), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten())
        self.neck = nn.Sequential(nn.Dropout(0.3), nn.Linear(40 * 49, 192), nn.ReLU(), nn.Dropout(0.3))
        self.units, self.emotion = nn.Linear(192, units), nn.Linear(192, len(EMOTIONS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.neck(self.body(pixels))
        return self.units(seen), self.emotion(seen)


def placement(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The turn and the shift by which the anchors lie where they should, as near as a similarity brings them."""
    points = np.concatenate([landmarks[[36, 39, 42, 45]], landmarks[31:36].mean(0, keepdims=True)])
    middle, target = points.mean(0), ANCHORS.mean(0)
    a, b = points - middle, ANCHORS - target
    norm = (a * a).sum()
    cos, sin = (a * b).sum() / norm, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / norm
    turn = np.array([[cos, -sin], [sin, cos]])
    return turn, target - turn @ middle


def aligned(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The grey crop of a face."""
    turn, move = placement(landmarks)
    grey, scale = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.hypot(*turn[0])
    if scale < 0.6:  # against aliasing
        small = scale * 1.3
        grey, turn = cv2.resize(grey, None, fx=small, fy=small, interpolation=cv2.INTER_AREA), turn / small
    matrix = np.hstack([turn, move[:, None]])
    return cv2.warpAffine(grey, matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)


@lru_cache(maxsize=8)
def _sitter(seed: int, style: str, person: int, without: str) -> Sitter:
    return Sitter(replace(subject(seed, style, person), **_WITHOUT[without][0]), SIDE)


def _render_without(index: int, style: str, seed: int, without: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and exact landmarks of `draw_example`'s image, but for one thing."""
    strengths = (sides(seed, style, index) / 5).astype(np.float32)
    place = replace(shot(seed, style, index), **_WITHOUT[without][1])
    seen = {"gaze": gaze(seed, style, index), "habits": habits(seed, style, index)}
    return render_face(_sitter(seed, style, index // FRAMES_PER_SUBJECT, without), strengths, place, SIDE, **seen)[:2]


def render(
    styles: Sequence[str], images: int, seed: int, without: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops, active AUs (those that all styles show) and emotions; every second frame, so that people are many."""
    names = units_of(styles)
    crops, units, emotions = np.empty((images, SIDE, SIDE), np.uint8), [], []
    rng = np.random.default_rng(seed)
    for number in range(images):
        style, place = styles[number % len(styles)], number // len(styles)
        person, frame = divmod(place, FRAMES_PER_SUBJECT // 2)
        index = person * FRAMES_PER_SUBJECT + 2 * frame + person % 2
        if without is None:
            pixels, landmarks = draw_example(index, style=style, seed=seed, exact_landmarks=True)
        else:
            pixels, landmarks = _render_without(index, style, seed, without)
        crops[number] = aligned(pixels, landmarks + rng.normal(0, 0.9, landmarks.shape))
        intensities, emotion = expression(seed, style, index)
        units.append(intensities[[shown_aus(style).index(name) for name in names]] >= ACTIVE_FROM)
        emotions.append(emotion)
    return crops, np.stack(units), np.array(emotions)


def units_of(styles: Sequence[str]) -> list[str]:
    return [name for name in shown_aus(styles[0]) if all(name in shown_aus(style) for style in styles)]


def varied(crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crops mirrored, moved, lit, blurred, made noisy and partly covered, each by its own mean and deviation."""
    count = len(crops)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    images = crops.float().div_(255)[:, None]
    images = images ** (0.6 + 1.0 * some(count, 1, 1, 1))
    angle, scale, flip = (some(count) - 0.5) * 0.30, 0.90 + 0.2 * some(count), torch.sign(some(count) - 0.5)
    rows = torch.stack([torch.cos(angle) * scale * flip, -torch.sin(angle) * scale, (some(count) - 0.5) * 0.12], 1)
    more = torch.stack([torch.sin(angle) * scale * flip, torch.cos(angle) * scale, (some(count) - 0.5) * 0.12], 1)
    grid = nn.functional.affine_grid(torch.stack([rows, more], 1), list(images.shape), align_corners=False)
    images = nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    slope = nn.functional.interpolate(0.6 + 0.8 * some(count, 1, 2, 2), SIDE, mode="bilinear", align_corners=True)
    images = images * slope
    blurred = nn.functional.avg_pool2d(images, 3, 1, 1)
    share = torch.where(some(count, 1, 1, 1) < 0.5, 1.3 * some(count, 1, 1, 1) - 0.3, torch.zeros(count, 1, 1, 1))
    images = images + share * (blurred - images)
    images = images + 0.03 * some(count, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    for place in torch.nonzero(some(count) < 0.35).flatten().tolist():
        top, left, height, width = (int(value) for value in some(4) * torch.tensor([80, 80, 40, 40]))
        images[place, :, top : top + height, left : left + width] = float(some(1))
    return normalized(images)


def normalized(images: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    return (images - mean) / (deviation + 0.02)


def train(data: tuple[np.ndarray, np.ndarray, np.ndarray], minutes: float, seed: int) -> SmallNet:
    """One cycle of the learning rate over so many CPU-minutes."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    crops, units, emotions = (torch.from_numpy(array) for array in data)
    net = SmallNet(units.shape[1]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    weight = (1 / units.float().mean(0).clamp(0.02) - 1).clamp(1, 6) ** 0.5
    half = bfloat16_cost() < 1
    start, spent = time.process_time(), 0.0
    while spent < 60 * minutes:
        for rows in torch.randperm(len(crops), generator=generator).split(64):
            share = min((time.process_time() - start) / (60 * minutes), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(share / 0.1, (1 - share) / 0.9 + 1e-3)
            views = varied(crops[rows], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found, feeling = net(views)
            loss = nn.functional.binary_cross_entropy_with_logits(found.float(), units[rows].float(), pos_weight=weight)
            loss = loss + 0.4 * nn.functional.cross_entropy(feeling.float(), emotions[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent = time.process_time() - start
            if spent >= 60 * minutes:
                break
    return net.eval()


def photographs(labels: dict[str, dict[str, str]]) -> tuple[np.ndarray, list[str]]:
    """Crops and emotions of the largest faces."""
    detector, crops, emotions = MediaPipeDetector(), [], []
    for name, row in labels.items():
        image = read_image(name)
        faces = detector.detect([image])[0]
        if faces:
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0)).astype(np.uint8)
            crops.append(aligned(pixels, faces[0].landmarks))
            emotions.append(row["emotion"])
    return np.stack(crops), emotions


@torch.no_grad()
def measure(net: SmallNet, names: list[str], crops: np.ndarray, emotions: list[str]) -> dict[str, float]:
    answers = []
    for part in torch.from_numpy(crops).split(200):
        images = part.float().div(255)[:, None]
        views = [net(normalized(view)) for view in (images, images.flip(-1))]
        answers.append([torch.stack(pair).mean(0) for pair in zip(*views, strict=True)])
    units, feelings = (torch.cat(parts).numpy() for parts in zip(*answers, strict=True))
    emotion, counts, figures = np.array(emotions), Counter(emotions), {}
    for name, signs in SIGNS.items():
        chosen = np.isin(emotion, (name, "Neutral"))
        for unit in set(signs) & set(names) if counts[name] >= LEAST else ():
            figures[f"transfer_{unit.lower()}_{name.lower()}"] = auc(
                units[chosen, names.index(unit)], emotion[chosen] == name
            )
    figures["transfer_mean_auc"] = float(np.mean(list(figures.values())))
    asked = [name for name in EMOTIONS if counts[name] >= LEAST]
    # Classes are rare or common among photographs as they please: each counts from its own mean.
    scores = feelings[:, [EMOTIONS.index(name) for name in asked]]
    answers = (scores - scores.mean(0)).argmax(1)
    recalls = [(answers[emotion == name] == place).mean() for place, name in enumerate(asked)]
    return {**figures, "transfer_macro_recall": float(np.mean(recalls)), "chance": 1 / len(asked)}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["studio", "street", "webcam"])
    parser.add_argument("--part", choices=("choose", "report"), default="report")
    parser.add_argument("--images", type=int, default=12000)
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU-minutes of training a net")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--without", nargs="+", choices=_WITHOUT, default=[], help="also measure renders without these")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    crops, emotions = photographs(read_labels(given.labels, given.photos, given.part))
    figures: dict[str, float] = {"photographs": len(crops), "images": given.images, "train_cpu_s": 60 * given.minutes}
    for part in (None, *given.without):
        start, seeds = time.process_time(), given.seeds[:1] if part else given.seeds
        data = render(given.styles, given.images, 0, part)
        before, spent = f"without_{part}_" if part else "", time.process_time() - start
        nets = [train(data, given.minutes, seed) for seed in seeds]
        results = [measure(net, units_of(given.styles), crops, emotions) for net in nets]
        figures[f"{before}render_cpu_s"] = spent
        for name in results[0]:
            values = [result[name] for result in results]
            figures[before + name] = float(np.mean(values))
            if len(values) > 1 and name != "chance":
                figures[f"{name}_sd"] = float(np.std(values, ddof=1))
        write_json(given.json, figures)
    print(f"{' '.join(given.styles)}: {len(crops)} photographs ({given.part} half), labels of emotion only")
    for name, value in sorted(figures.items()):
        print(f"  {name:<44}{value:10.3f}")
    return figures


if __name__ == "__main__":
    main()
