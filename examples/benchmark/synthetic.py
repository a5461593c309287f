"""How fast the synthetic faces are drawn, how hard they are, and whether each action unit is seen where FACS puts it.

    python examples/benchmark/synthetic.py [--quick] [--json FILE]

Costs are CPU-seconds of this process and its children. F1: macro over the MFA AUs, threshold 0.5, subjects unseen in
training, labels with the annotators' errors. Nothing here is a result on a real face.
"""

import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch
from report import options, write_json
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestNeighbors
from torch import nn

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LEFT_INNER_EYE, REGION_RULES, RIGHT_INNER_EYE, LabelSet
from mf2face.data.reference_scores import centred_landmarks, logistic
from mf2face.data.synthetic.faces import MFASynthetic, draw_example, synthetic_truth
from mf2face.data.synthetic.geometry import DRAWABLE_AUS
from mf2face.data.synthetic.subjects import FRAMES_PER_SUBJECT, annotate, detected


ALL_AUS = LabelSet(DRAWABLE_AUS, EMOTIONS)
MFA_COLUMNS = [DRAWABLE_AUS.index(name) for name in LABEL_SETS["mfa"].action_units]
# Action units of one part of the face move the same skin: their regions count as one (strictly: each for itself).
COUPLED = ({"AU1", "AU2", "AU4"}, {"AU10", "AU23", "AU24", "AU25"}, {"AU12", "AU14", "AU15"}, {"AU17", "AU26"})


@dataclass
class Faces:
    pixels: np.ndarray
    landmarks: np.ndarray
    """Exact."""
    jittered: np.ndarray
    labels: np.ndarray
    """As annotated, -1 unknown; all 15 AUs."""
    emotions: np.ndarray
    true_labels: np.ndarray
    true_emotions: np.ndarray

    def part(self, rows: slice) -> "Faces":
        return Faces(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def draw_faces(n: int) -> Faces:
    truth = synthetic_truth(n, label_set=ALL_AUS)
    drawn = [draw_example(i, exact_landmarks=True) for i in range(n)]
    annotations = [annotate(0, "paint", i) for i in range(n)]
    return Faces(
        np.stack([pixels for pixels, _ in drawn]),
        np.stack([landmarks for _, landmarks in drawn]),
        np.stack([detected(landmarks, 0, "paint", i, 112) for i, (_, landmarks) in enumerate(drawn)]),
        np.stack([annotation.labels for annotation in annotations]),
        np.array([annotation.emotion for annotation in annotations]),
        truth["au_labels"],
        truth["emotion"],
    )


def au_f1s(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each AU's F1 over the images where it was labelled."""
    known = labels >= 0
    return np.array(
        [f1_score(y[k], a[k], zero_division=0) for a, y, k in zip(answers.T, labels.T, known.T, strict=True)]
    )


def mfa_f1(answers: np.ndarray, labels: np.ndarray) -> float:
    return float(au_f1s(answers, labels)[MFA_COLUMNS].mean())


def speed(n: int, figures: dict[str, float]) -> None:
    """Whole examples as a data loader gets them: drawn, labelled, captioned, encoded."""
    for size in (112, 224):
        warm_up = iter(
            MFASynthetic(n, size=size, seed=1, streaming=True).cast_column("image", datasets.Image(decode=False))
        )
        next(warm_up)
        start = cpu_seconds()
        count = sum(1 for _ in warm_up)
        figures[f"images_per_cpu_s_{size}"] = count / (cpu_seconds() - start)
        start = cpu_seconds()
        for index in range(n // 2):
            draw_example(index, seed=1, size=size)
        figures[f"drawn_per_cpu_s_{size}"] = (n // 2) / (cpu_seconds() - start)


def two_processes(n: int, figures: dict[str, float]) -> None:
    """One process's CPU-seconds over those on the longest path of two: the parent's and half of its two children's."""
    # Two busy cores slow each other down: the best of three rounds counts.
    path: dict[int | None, list[float]] = {None: [], 2: []}
    for processes in (None, 2) * 3:
        with tempfile.TemporaryDirectory() as folder:
            start = _own_and_children()
            MFASynthetic(n, seed=1, cache_dir=folder, num_proc=processes)
            own, children = (now - then for now, then in zip(_own_and_children(), start, strict=True))
            path[processes].append(own + children / 2)
    figures["two_process_speedup"] = min(path[None]) / min(path[2])


def _own_and_children() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return tuple(usage.ru_utime + usage.ru_stime for usage in used)


def cpu_seconds() -> float:
    return sum(_own_and_children())


def streamed_memory(n: int, figures: dict[str, float]) -> None:
    """Growth of the memory in use while n images stream, after a fifth of them."""
    before = 0.0
    for count, _ in enumerate(MFASynthetic(n, size=64, seed=1, streaming=True)):
        if count == n // 5:
            before = _memory_mb()
    figures["stream_growth_mb"] = _memory_mb() - before


def _memory_mb() -> float:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0  # 0 where the system does not tell
    return pages * resource.getpagesize() / 2**20


def baselines(train: Faces, test: Faces, figures: dict[str, float]) -> None:
    figures["all_ones_f1"] = mfa_f1(np.ones_like(test.labels), test.labels)
    small = [
        np.stack([cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA) for image in part.pixels])
        for part in (train, test)
    ]
    raw = [pixels.reshape(len(pixels), -1).astype(np.float32) / 255 for pixels in small]
    neighbour = NearestNeighbors(n_neighbors=1).fit(raw[0]).kneighbors(raw[1], return_distance=False)[:, 0]
    figures["knn_f1"] = mfa_f1(np.maximum(train.labels[neighbour], 0), test.labels)
    figures["pixel_logreg_f1"] = mfa_f1(logistic(raw[0], train.labels, raw[1], 1e-3), test.labels)
    for name, field in (("exact", "landmarks"), ("jitter", "jittered")):
        first, second = (centred_landmarks(getattr(part, field)) for part in (train, test))
        answers = logistic(first, train.labels, second, 0.1)
        figures[f"landmark_{name}_f1"] = mfa_f1(answers, test.labels)
    known = test.emotions >= 0
    seen = [part.true_labels[:, MFA_COLUMNS].astype(float) for part in (train, test)]
    guesses = logistic(seen[0], train.emotions[:, None], seen[1], 1.0)[:, 0]
    figures["emotion_from_true_aus"] = float((guesses == test.emotions)[known].mean())
    figures["au_ceiling"] = mfa_f1(test.true_labels, test.labels)
    figures["emotion_ceiling"] = float((test.true_emotions == test.emotions)[known].mean())


def small_net(outputs: int) -> nn.Module:
    """Seven convolutions to 7 x 7 x 128; the flattening readout keeps where a thing was seen."""
    layers: list[nn.Module] = []
    for inner, outer, stride in (
        (3, 24, 2),
        (24, 32, 1),
        (32, 48, 2),
        (48, 64, 2),
        (64, 96, 1),
        (96, 128, 2),
        (128, 128, 1),
    ):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(7 * 7 * 128, outputs))


def _as_input(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def train_net(train: Faces, epochs: int, cpu_limit: float) -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net, start = small_net(len(DRAWABLE_AUS)), cpu_seconds()
    steps = epochs * (len(train.pixels) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    rows = np.concatenate([rng.permutation(len(train.pixels))[: steps // epochs * 64] for _ in range(epochs)]).reshape(
        -1, 64
    )
    for batch in rows:
        pixels = train.pixels[batch]
        for image in pixels[::2]:  # every second image loses a patch, so that a hidden region is nothing unheard of
            left, top = rng.integers(8, 84, 2)
            _hide(image, left, top, int(rng.integers(12, 28)))
        labels = torch.from_numpy(train.labels[batch]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(net(_as_input(pixels)), labels.clamp(0), reduction="none")
        loss = (loss * (labels >= 0)).sum() / (labels >= 0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if cpu_seconds() - start > cpu_limit:
            break
    return net.eval(), cpu_seconds() - start


def _hide(image: np.ndarray, left: int, top: int, side: int) -> None:
    left, top = max(left, 0), max(top, 0)
    patch = image[top : top + side, left : left + side]
    patch[:] = patch.reshape(-1, 3).mean(0) if patch.size else 0


@torch.no_grad()
def answers_of(net: nn.Module, pixels: np.ndarray) -> np.ndarray:
    parts = np.array_split(pixels, len(pixels) // 100 + 1)
    return np.concatenate([(net(_as_input(part)) > 0).numpy() for part in parts])


def hide_regions(faces: Faces, name: str, share: float) -> np.ndarray:
    """Both squares around an AU's centres; side: a share of the inner-ocular distance."""
    rule, hidden = REGION_RULES[name], faces.pixels.copy()
    for image, points in zip(hidden, faces.landmarks, strict=True):
        across = points[RIGHT_INNER_EYE] - points[LEFT_INNER_EYE]
        down = np.array([-across[1], across[0]]) * rule.down
        side = round(share * float(np.linalg.norm(across)))
        for corner in (rule.first, rule.second):
            left, top = np.round(points[list(corner)].mean(0) + down - side / 2).astype(int)
            _hide(image, left, top, side)
    return hidden


def regions(net: nn.Module, test: Faces, figures: dict[str, float]) -> None:
    """Rows: the region hidden; columns: how many points of F1 each AU then loses."""
    plain = au_f1s(answers_of(net, test.pixels), test.labels)
    drops = np.stack(
        [plain - au_f1s(answers_of(net, hide_regions(test, name, 1.0)), test.labels) for name in DRAWABLE_AUS]
    )
    print("\nF1 lost (points) when a region is hidden; rows: region, columns: AU")
    print("      " + "".join(f"{name[2:]:>5}" for name in DRAWABLE_AUS))
    for name, row in zip(DRAWABLE_AUS, drops, strict=True):
        print(f"{name:<6}" + "".join(f"{100 * drop:5.0f}" for drop in row))
    print("F1    " + "".join(f"{100 * f1:5.0f}" for f1 in plain))
    wins = []
    for column, name in enumerate(DRAWABLE_AUS):
        own = next((group for group in COUPLED if name in group), {name})
        is_own = np.array([other in own for other in DRAWABLE_AUS])
        wins.append(drops[is_own, column].max() > drops[~is_own, column].max())
    print("lost elsewhere:", [name for name, won in zip(DRAWABLE_AUS, wins, strict=True) if not won])
    figures["own_region_wins"] = float(sum(wins))
    own = np.diag(drops)
    figures["own_region_wins_strict"] = float(((own > 0) & (own >= drops.max(0))).sum())  # AUs of one region tie


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small sample: shows that it runs, measures nothing")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    speed(64 if quick else 800, figures)
    two_processes(256 if quick else 3000, figures)
    streamed_memory(200 if quick else 20_000, figures)
    trained, tested = (10 * FRAMES_PER_SUBJECT, 6 * FRAMES_PER_SUBJECT) if quick else (6400, 1600)
    faces = draw_faces(trained + tested)
    train, test = faces.part(slice(0, trained)), faces.part(slice(trained, None))
    baselines(train, test, figures)
    net, figures["cnn_train_cpu_s"] = train_net(train, epochs=1 if quick else 6, cpu_limit=250)
    answers = answers_of(net, test.pixels)
    figures["cnn_f1"] = mfa_f1(answers, test.labels)
    figures["cnn_f1_all_15"] = float(au_f1s(answers, test.labels).mean())
    regions(net, test, figures)
    print("\nSynthetic faces" + (" (quick: not a measurement)" if quick else ""))
    for name, value in figures.items():
        print(f"  {name:<28}{value:10.3f}")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
