"""How fast the synthetic faces are made, how hard they are, and whether each action unit is seen where FACS puts it.

    python examples/benchmark/synthetic.py [--style studio] [--quick] [--json FILE]

Costs are CPU-seconds of this process and its children. F1: macro over the MFA AUs, threshold 0.5, subjects unseen in
training, labels with the annotators' errors. Nothing here is a result on a real face.
Of rendered styles also: found_by_detector, the share of faces that MediaPipe's networks (`mf2 setup`) find;
landmark_agreement, their median distance to ours without the jaw line, in outer-eye distances; facts_auc, how well
light, age, glasses, skin and pose tell the labels (0.5 is chance).
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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import nn

from configuration_mf2.facs import (
    EMOTIONS,
    LABEL_SETS,
    LEFT_INNER_EYE,
    LEFT_OUTER_EYE,
    REGION_RULES,
    RIGHT_INNER_EYE,
    RIGHT_OUTER_EYE,
    LabelSet,
)
from mf2face.data.reference_scores import centred_landmarks, logistic
from mf2face.data.synthetic.faces import MFASynthetic, draw_example, synthetic_truth
from mf2face.data.synthetic.subjects import (
    FRAMES_PER_SUBJECT,
    STYLES,
    annotate,
    detected,
    is_rendered,
    shot,
    shown_aus,
    subject,
)
from processing_mf2.detection import MediaPipeDetector, missing_networks


# Action units of one part of the face move the same skin: their regions count as one (strictly: each for itself).
COUPLED = (
    {"AU1", "AU2", "AU4"},
    {"AU5", "AU7", "AU43"},
    {"AU10", "AU16", "AU18", "AU22", "AU23", "AU24", "AU25"},
    {"AU12", "AU14", "AU15", "AU20"},
    {"AU17", "AU26", "AU27"},
)


@dataclass
class Faces:
    names: tuple[str, ...]
    """The action units."""
    pixels: np.ndarray
    landmarks: np.ndarray
    """Exact."""
    jittered: np.ndarray
    labels: np.ndarray
    """As annotated, -1 unknown."""
    emotions: np.ndarray
    true_labels: np.ndarray
    true_emotions: np.ndarray

    def part(self, rows: slice) -> "Faces":
        return Faces(self.names, *(getattr(self, name)[rows] for name in list(self.__dataclass_fields__)[1:]))


def draw_faces(n: int, style: str) -> Faces:
    names = shown_aus(style)
    truth = synthetic_truth(n, style, label_set=LabelSet(names, EMOTIONS))
    drawn = [draw_example(i, style=style, exact_landmarks=True) for i in range(n)]
    annotations = [annotate(0, style, i) for i in range(n)]
    return Faces(
        names,
        np.stack([pixels for pixels, _ in drawn]),
        np.stack([landmarks for _, landmarks in drawn]),
        np.stack([detected(landmarks, 0, style, i, 112) for i, (_, landmarks) in enumerate(drawn)]),
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


def mfa_f1(answers: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> float:
    return float(au_f1s(answers, labels)[mfa_columns(names)].mean())


def mfa_columns(names: tuple[str, ...]) -> list[int]:
    return [names.index(name) for name in LABEL_SETS["mfa"].action_units]


def speed(n: int, style: str, figures: dict[str, float]) -> None:
    """Whole examples as a data loader gets them: drawn, labelled, captioned, encoded."""
    for size in (112, 224):
        warm_up = iter(
            MFASynthetic(n, style, size=size, seed=1, streaming=True).cast_column("image", datasets.Image(decode=False))
        )
        next(warm_up)
        start = cpu_seconds()
        count = sum(1 for _ in warm_up)
        figures[f"images_per_cpu_s_{size}"] = count / (cpu_seconds() - start)
        start = cpu_seconds()
        for index in range(n // 2):
            draw_example(index, style=style, seed=1, size=size)
        figures[f"drawn_per_cpu_s_{size}"] = (n // 2) / (cpu_seconds() - start)


def two_processes(n: int, style: str, figures: dict[str, float]) -> None:
    """One process's CPU-seconds over those on the longest path of two: the parent's and half of its two children's."""
    # Two busy cores slow each other down: the best of three rounds counts.
    path: dict[int | None, list[float]] = {None: [], 2: []}
    for processes in (None, 2) * 3:
        with tempfile.TemporaryDirectory() as folder:
            start = _own_and_children()
            MFASynthetic(n, style, seed=1, cache_dir=folder, num_proc=processes)
            own, children = (now - then for now, then in zip(_own_and_children(), start, strict=True))
            path[processes].append(own + children / 2)
    figures["two_process_speedup"] = min(path[None]) / min(path[2])


def _own_and_children() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return tuple(usage.ru_utime + usage.ru_stime for usage in used)


def cpu_seconds() -> float:
    return sum(_own_and_children())


def streamed_memory(n: int, style: str, figures: dict[str, float]) -> None:
    """Growth of the memory in use while n images stream, after a fifth of them."""
    before = 0.0
    for count, _ in enumerate(MFASynthetic(n, style, size=64, seed=1, streaming=True)):
        if count == n // 5:
            before = _memory_mb()
    figures["stream_growth_mb"] = _memory_mb() - before


def _memory_mb() -> float:
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0  # 0 where the system does not tell
    return pages * resource.getpagesize() / 2**20


def baselines(train: Faces, test: Faces, figures: dict[str, float]) -> None:
    figures["all_ones_f1"] = mfa_f1(np.ones_like(test.labels), test.labels, test.names)
    small = [
        np.stack([cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA) for image in part.pixels])
        for part in (train, test)
    ]
    raw = [pixels.reshape(len(pixels), -1).astype(np.float32) / 255 for pixels in small]
    neighbour = NearestNeighbors(n_neighbors=1).fit(raw[0]).kneighbors(raw[1], return_distance=False)[:, 0]
    figures["knn_f1"] = mfa_f1(np.maximum(train.labels[neighbour], 0), test.labels, test.names)
    figures["pixel_logreg_f1"] = mfa_f1(logistic(raw[0], train.labels, raw[1], 1e-3), test.labels, test.names)
    for name, field in (("exact", "landmarks"), ("jitter", "jittered")):
        first, second = (centred_landmarks(getattr(part, field)) for part in (train, test))
        answers = logistic(first, train.labels, second, 0.1)
        figures[f"landmark_{name}_f1"] = mfa_f1(answers, test.labels, test.names)
    known = test.emotions >= 0
    seen = [part.true_labels[:, mfa_columns(test.names)].astype(float) for part in (train, test)]
    guesses = logistic(seen[0], train.emotions[:, None], seen[1], 1.0)[:, 0]
    figures["emotion_from_true_aus"] = float((guesses == test.emotions)[known].mean())
    figures["au_ceiling"] = mfa_f1(test.true_labels, test.labels, test.names)
    figures["emotion_ceiling"] = float((test.true_emotions == test.emotions)[known].mean())


def by_a_detector(n: int, style: str, figures: dict[str, float]) -> None:
    """What networks that were trained on photographs find in renders that are turned by at most 45 degrees."""
    if missing_networks():
        print("found_by_detector: left out, since MediaPipe's networks are not here; `mf2 setup` puts them there")
        return
    detector, found, apart = MediaPipeDetector(), [], []
    for index in range(0, n * FRAMES_PER_SUBJECT, FRAMES_PER_SUBJECT):
        index += index // FRAMES_PER_SUBJECT % FRAMES_PER_SUBJECT
        if abs(shot(2, style, index).yaw) > np.pi / 4:
            continue
        pixels, landmarks = draw_example(index, style=style, seed=2, size=224, exact_landmarks=True)
        faces = detector.detect([np.ascontiguousarray(pixels.transpose(2, 0, 1))])[0]
        found.append(bool(faces))
        if faces:
            eyes = np.linalg.norm(landmarks[RIGHT_OUTER_EYE] - landmarks[LEFT_OUTER_EYE])
            apart.append(np.linalg.norm(faces[0].landmarks - landmarks, axis=1)[17:] / eyes)
    figures["found_by_detector"] = float(np.mean(found))
    figures["landmark_agreement"] = float(np.median(apart)) if apart else 1.0


def from_facts(n: int, style: str, figures: dict[str, float]) -> None:
    """Mean AUC over the AUs of a linear model that knows only who is shown, and how it is lit and turned."""
    facts, labels = [], synthetic_truth(n, style, label_set=LabelSet(shown_aus(style)))["au_labels"]
    for index in range(n):
        person, place = subject(0, style, index // FRAMES_PER_SUBJECT), shot(0, style, index)
        light, ambient = place.lights[0], np.mean(place.ambient[0])
        who = (
            person.tone,
            person.age,
            person.is_male,
            person.eyewear != "none",
            person.beard != "none",
            *light,
            ambient,
        )
        facts.append((*who, place.yaw, place.pitch, place.roll, place.scale, place.exposure, place.noise))
    facts, half = np.array(facts, float), n // 2
    facts = (facts - facts[:half].mean(0)) / (facts[:half].std(0) + 1e-9)
    scores = []
    for truth in labels.T:
        if len(set(truth[:half])) == len(set(truth[half:])) == 2:
            probe = LogisticRegression(C=0.1, max_iter=300).fit(facts[:half], truth[:half])
            scores.append(roc_auc_score(truth[half:], probe.decision_function(facts[half:])))
    figures["facts_auc"] = float(np.mean(scores)) if scores else 0.5


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
    net, start = small_net(len(train.names)), cpu_seconds()
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
        [plain - au_f1s(answers_of(net, hide_regions(test, name, 1.0)), test.labels) for name in test.names]
    )
    print("\nF1 lost (points) when a region is hidden; rows: region, columns: AU")
    print("      " + "".join(f"{name[2:]:>5}" for name in test.names))
    for name, row in zip(test.names, drops, strict=True):
        print(f"{name:<6}" + "".join(f"{100 * drop:5.0f}" for drop in row))
    print("F1    " + "".join(f"{100 * f1:5.0f}" for f1 in plain))
    wins = []
    for column, name in enumerate(test.names):
        own = next((group for group in COUPLED if name in group), {name})
        is_own = np.array([other in own for other in test.names])
        wins.append(drops[is_own, column].max() > drops[~is_own, column].max())
    print("lost elsewhere:", [name for name, won in zip(test.names, wins, strict=True) if not won])
    figures["own_region_wins"] = float(sum(wins))
    own = np.diag(drops)
    figures["own_region_wins_strict"] = float(((own > 0) & (own >= drops.max(0))).sum())  # AUs of one region tie


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small sample: shows that it runs, measures nothing")
    parser.add_argument("--style", choices=STYLES, default="paint")
    arguments = parser.parse_args(argv)
    quick, style = arguments.quick, arguments.style
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    speed(64 if quick else 800, style, figures)
    if is_rendered(style):
        by_a_detector(6 if quick else 200, style, figures)
        from_facts(400 if quick else 16_000, style, figures)
    two_processes(256 if quick else 3000, style, figures)
    streamed_memory(200 if quick else 20_000, style, figures)
    trained, tested = (10 * FRAMES_PER_SUBJECT, 6 * FRAMES_PER_SUBJECT) if quick else (6400, 1600)
    faces = draw_faces(trained + tested, style)
    train, test = faces.part(slice(0, trained)), faces.part(slice(trained, None))
    baselines(train, test, figures)
    net, figures["cnn_train_cpu_s"] = train_net(train, epochs=1 if quick else 6, cpu_limit=250)
    answers = answers_of(net, test.pixels)
    figures["cnn_f1"] = mfa_f1(answers, test.labels, test.names)
    figures["cnn_f1_all"] = float(au_f1s(answers, test.labels).mean())
    regions(net, test, figures)
    print(f"\nSynthetic faces, style {style}" + (" (quick: not a measurement)" if quick else ""))
    for name, value in figures.items():
        print(f"  {name:<28}{value:10.3f}")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
