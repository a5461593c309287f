"""How fast the synthetic faces are made, how hard they are, and whether each action unit is seen where FACS puts it.

    python examples/benchmark/synthetic.py [--styles studio street webcam] [--streamed 4000] [--minutes 4] [--quick]
        [--json FILE]

Costs are CPU-seconds of this process and its children. F1: macro over the MFA AUs, threshold 0.5, subjects unseen in
training, labels with the annotators' errors. Nothing here is a result on a real face. Figures begin with their style;
without one: the worst of the styles.

own_region_wins     of the AUs shown: those whose AUC a small net loses most of where their own region is hidden; AUs of
                    one part of the face count as one region (groups printed), strictly: each for itself. All styles
stream_growth_mb    growth of the memory in use over 100,000 streamed images: of `--streamed` ones, in proportion
two_process_speedup one process's CPU-seconds over those on the longest path of two
images_per_cpu_s    the best of three rounds, as two_process_speedup
found_by_detector   of renders turned by at most 45 degrees, the share that MediaPipe's networks (`mf2 setup`) find
landmark_agreement  their median distance to our points, without the jaw line, in outer-eye distances; ..._frontal: of
                    heads turned by at most 10 degrees; mirror_agreement: theirs from those of the mirrored image
baking_cpu_s        of baking the bank of heads, where `anny` is installed (extra `render`)
facts_auc           how well light, age, glasses, skin and pose tell the labels (0.5 is chance)
"""

import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch
from report import options, write_json
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from transfer import SIDE, SmallNet, aligned, normalized, placement
from transfer import train as train_small_net

from configuration_mf2.facs import (
    EMOTIONS,
    LABEL_SETS,
    LANDMARK_MIRROR,
    LEFT_INNER_EYE,
    LEFT_OUTER_EYE,
    REGION_RULES,
    RIGHT_INNER_EYE,
    RIGHT_OUTER_EYE,
    LabelSet,
)
from mf2face.data.reference_scores import centred_landmarks, logistic
from mf2face.data.synthetic.baking import bake
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
    {"AU5", "AU6", "AU7", "AU43"},
    {"AU10", "AU16", "AU18", "AU22", "AU23", "AU24", "AU25"},
    {"AU12", "AU14", "AU15", "AU20"},
    {"AU17", "AU26", "AU27"},
)


ROUNDS = 3
"""Of what takes time: other work on the machine slows a round down, so the best one counts."""


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


def joined(parts: list[Faces]) -> Faces:
    """Faces of several styles, of the action units that all show."""
    names = tuple(name for name in parts[0].names if all(name in part.names for part in parts))

    def values(part: Faces, field: str) -> np.ndarray:
        columns = [part.names.index(name) for name in names]
        return getattr(part, field)[:, columns] if field.endswith("labels") else getattr(part, field)

    fields = list(Faces.__dataclass_fields__)[1:]
    return Faces(names, *(np.concatenate([values(part, field) for part in parts]) for field in fields))


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
        faces = MFASynthetic(n, style, size=size, seed=1, streaming=True)
        faces, spent = faces.cast_column("image", datasets.Image(decode=False)), []
        for _ in range(ROUNDS):
            rows = iter(faces)
            next(rows)  # compiles
            start = cpu_seconds()
            count = sum(1 for _ in rows)
            spent.append(cpu_seconds() - start)
        figures[f"images_per_cpu_s_{size}"] = count / min(spent)


def two_processes(n: int, style: str, figures: dict[str, float]) -> None:
    """One process's CPU-seconds over those on the longest path of two: the parent's and half of its two children's."""
    path: dict[int | None, list[float]] = {None: [], 2: []}
    for processes in (None, 2) * ROUNDS:
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
    """Growth of the memory in use per 100,000 images, by a line through the second half of n."""
    used = []
    for count, _ in enumerate(MFASynthetic(n, style, size=64, seed=1, streaming=True)):
        if count >= n // 2 and count % max(n // 200, 1) == 0:
            used.append((count, _memory_mb()))
    slope = np.polyfit(*np.array(used).T, 1)[0]
    figures["stream_growth_mb"] = float(slope * 100_000)


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
    detector, found, apart, mirrored, yaws = MediaPipeDetector(), [], [], [], []
    for index in range(0, n * FRAMES_PER_SUBJECT, FRAMES_PER_SUBJECT):
        index += index // FRAMES_PER_SUBJECT % FRAMES_PER_SUBJECT
        if abs(shot(2, style, index).yaw) > np.pi / 4:
            continue
        pixels, landmarks = draw_example(index, style=style, seed=2, size=224, exact_landmarks=True)
        views = [np.ascontiguousarray(view.transpose(2, 0, 1)) for view in (pixels, pixels[:, ::-1])]
        faces, mirrors = detector.detect(views)
        found.append(bool(faces))
        if faces and mirrors:
            eyes, seen = np.linalg.norm(landmarks[RIGHT_OUTER_EYE] - landmarks[LEFT_OUTER_EYE]), faces[0].landmarks
            mirror = mirrors[0].landmarks[list(LANDMARK_MIRROR)] * (-1, 1) + (pixels.shape[1], 0)
            apart.append(np.linalg.norm(seen - landmarks, axis=1)[17:] / eyes)
            mirrored.append(np.linalg.norm(seen - mirror, axis=1)[17:] / eyes)
            yaws.append(abs(shot(2, style, index).yaw))
    apart, is_frontal = np.array(apart), np.array(yaws) <= np.radians(10)
    figures["found_by_detector"] = float(np.mean(found))
    figures["landmark_agreement"] = float(np.median(apart))
    figures["landmark_agreement_frontal"] = float(np.median(apart[is_frontal]))
    figures["mirror_agreement"] = float(np.median(mirrored))


def baking(figures: dict[str, float]) -> None:
    if find_spec("anny") is None:
        print("baking_cpu_s: left out, since anny is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        start = cpu_seconds()
        bake(Path(folder))
        figures["baking_cpu_s"] = cpu_seconds() - start


def from_facts(n: int, style: str, figures: dict[str, float]) -> None:
    """Mean AUC over the AUs of a linear model that knows only who is shown, and how it is lit and turned."""
    facts, labels = [], synthetic_truth(n, style, label_set=LabelSet(shown_aus(style)))["au_labels"]
    for index in range(n):
        person, place = subject(0, style, index // FRAMES_PER_SUBJECT), shot(0, style, index)
        who = (person.tone, person.age, person.is_male, person.eyewear != "none", person.beard != "none")
        light = (*place.lights[0], np.mean(place.ambient[0]), place.exposure, place.noise)
        facts.append((*who, *light, place.yaw, place.pitch, place.roll, place.scale))
    facts, half = np.array(facts, float), n // 2
    facts = (facts - facts[:half].mean(0)) / (facts[:half].std(0) + 1e-9)
    scores = []
    for truth in labels.T:
        if len(set(truth[:half])) == len(set(truth[half:])) == 2:
            probe = LogisticRegression(C=0.1, max_iter=300).fit(facts[:half], truth[:half])
            scores.append(roc_auc_score(truth[half:], probe.decision_function(facts[half:])))
    figures["facts_auc"] = float(np.mean(scores)) if scores else 0.5


def crops_of(faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """Grey crops as `transfer.py` makes them, and where the exact landmarks lie in them."""
    crops = np.stack([aligned(image, points) for image, points in zip(faces.pixels, faces.jittered, strict=True)])
    turns = [placement(seen) for seen in faces.jittered]
    placed = [exact @ turn.T + move for exact, (turn, move) in zip(faces.landmarks, turns, strict=True)]
    return crops, np.stack(placed)


@torch.no_grad()
def scores_of(net: SmallNet, crops: np.ndarray) -> np.ndarray:
    parts = torch.from_numpy(crops).split(200)
    return np.concatenate([net(normalized(part.float().div(255)[:, None]))[0].numpy() for part in parts])


def aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    pairs = zip(scores.T, labels.T, strict=True)
    return np.array([roc_auc_score(y, score) if 0 < y.sum() < len(y) else 0.5 for score, y in pairs])


def hide_region(crops: np.ndarray, landmarks: np.ndarray, name: str, share: float = 1.0) -> np.ndarray:
    """Both squares around an AU's centres, filled with their mean; side: a share of the inner-ocular distance."""
    rule, hidden = REGION_RULES[name], crops.copy()
    for image, points in zip(hidden, landmarks, strict=True):
        across = points[RIGHT_INNER_EYE] - points[LEFT_INNER_EYE]
        down = np.array([-across[1], across[0]]) * rule.down
        half = share * float(np.linalg.norm(across)) / 2
        for corner in (rule.first, rule.second):
            low = np.round(points[list(corner)].mean(0) + down - half).astype(int).clip(0, SIDE - 1)
            high = np.round(points[list(corner)].mean(0) + down + half).astype(int).clip(1, SIDE)
            patch = image[low[1] : high[1], low[0] : high[0]]
            patch[:] = patch.mean() if patch.size else 0
    return hidden


def regions(train: Faces, test: Faces, minutes: float, figures: dict[str, float]) -> None:
    """Rows: the region hidden; columns: how many points of AUC each AU then loses."""
    crops, landmarks = crops_of(test)
    net = train_small_net((crops_of(train)[0], train.labels == 1, np.maximum(train.emotions, 0)), minutes, 0)
    answers, labels = scores_of(net, crops), test.true_labels
    plain = aucs(answers, labels)
    figures["small_net_auc"], figures["images_trained_on"] = float(plain.mean()), float(len(train.labels))
    figures["small_net_f1"] = mfa_f1(answers > 0, test.labels, test.names)
    drops = np.stack([plain - aucs(scores_of(net, hide_region(crops, landmarks, n)), labels) for n in test.names])
    print("\nAUC lost (points) when a region is hidden; rows: region, columns: AU")
    print("      " + "".join(f"{name[2:]:>5}" for name in test.names))
    for name, row in zip(test.names, drops, strict=True):
        print(f"{name:<6}" + "".join(f"{100 * drop:5.1f}" for drop in row))
    print("AUC   " + "".join(f"{100 * auc:5.0f}" for auc in plain))
    wins = []
    for column, name in enumerate(test.names):
        own = next((group for group in COUPLED if name in group), {name})
        is_own = np.array([other in own for other in test.names])
        wins.append(drops[is_own, column].max() > drops[~is_own, column].max())
    print("counted as one region:", ", ".join("+".join(sorted(group)) for group in COUPLED))
    print("lose more elsewhere:", [name for name, won in zip(test.names, wins, strict=True) if not won])
    own = np.diag(drops)
    figures |= {"own_region_wins": float(sum(wins)), "action_units": float(len(wins))}
    figures["own_region_wins_strict"] = float(((own > 0) & (own >= drops.max(0))).sum())  # AUs of one region tie


# Of what is better the larger it is, the worst is the least; of these, the most.
_SMALL_IS_GOOD = ("knn_f1", "pixel_logreg_f1", "facts_auc", "stream_growth_mb", "landmark_agreement")
_SMALL_IS_GOOD += ("landmark_agreement_frontal", "mirror_agreement")


def worst(figures: dict[str, float], styles: list[str]) -> dict[str, float]:
    """The figures of all styles as they are, behind the worst of each."""
    names = dict.fromkeys(name.partition("_")[2] for name in figures if name.startswith(tuple(styles)))
    found = {name: [figures[f"{style}_{name}"] for style in styles if f"{style}_{name}" in figures] for name in names}
    return {name: (max if name in _SMALL_IS_GOOD else min)(values) for name, values in found.items()} | figures


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small sample: shows that it runs, measures nothing")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["studio", "street", "webcam"])
    parser.add_argument("--streamed", type=int, default=4000, help="images; the memory's growth is told for 100,000")
    parser.add_argument(
        "--people", type=int, default=110, help="of each style, 16 images each; a fifth is for the test"
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU-minutes of the small net's training")
    given = parser.parse_args(argv)
    quick, count = given.quick, (10 if given.quick else given.people) * FRAMES_PER_SUBJECT
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    scale = 1 if quick else 10

    def measured(step: Callable[..., None], *arguments: object, style: str) -> None:
        """Runs one step, and writes what is known so far: a run that is stopped has not been in vain."""
        own: dict[str, float] = {}
        step(*arguments, own)
        figures.update({f"{style}_{name}" if style else name: round(value, 4) + 0.0 for name, value in own.items()})
        write_json(given.json, worst(figures, given.styles))

    measured(two_processes, 64 if quick else 512, given.styles[0], style=given.styles[0])
    measured(streamed_memory, 100 if quick else given.streamed, given.styles[0], style=given.styles[0])
    for style in given.styles:
        measured(speed, 16 * scale, style, style=style)
        if is_rendered(style):
            measured(by_a_detector, 24 * scale, style, style=style)
            measured(from_facts, 800 * scale, style, style=style)
    measured(baking, style="")
    parts = []
    for style in given.styles:
        faces, held = draw_faces(count, style), count // 5 // FRAMES_PER_SUBJECT * FRAMES_PER_SUBJECT
        parts.append((faces.part(slice(held, None)), faces.part(slice(0, held))))
        measured(baselines, *parts[-1], style=style)
    train, test = (joined([pair[which] for pair in parts]) for which in (0, 1))
    measured(regions, train, test, 0.05 if quick else given.minutes, style="")
    sizes = {"examples_timed": 16 * scale, "renders_judged_a_style": 24 * scale, "people_a_style": count // 16}
    figures = {**worst(figures, given.styles), **sizes}
    write_json(given.json, figures)
    print(f"\nSynthetic faces, {' '.join(given.styles)}" + (" (quick: not a measurement)" if quick else ""))
    for name, value in figures.items():
        print(f"  {name:<36}{value:10.3f}")
    return figures


if __name__ == "__main__":
    main()
