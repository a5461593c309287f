"""What a checkpoint's answers are worth on synthetic people, and a grade for each action unit and emotion.

    python examples/benchmark/reliability.py FOLDER [--photographs FIGURES.json] [--json FILE]

Grades and their evidence are written into FOLDER: `grades` in its processor_config.json, `reliability.json`, the card.
The rule is `RULE` in mf2face/training/reliability.py. `--photographs` takes what `photographs.py --json` measured with
the same weights; without it every label is experimental. A checkpoint without conformal cuts is calibrated first.

test/...             scores of people that training did not see, in the style that it saw: au_roc_auc/AU12 and so on
style_shift/...      the same in a style that training did not see
.../coverage_90_au   share of answers at confidence 0.9 that do not contradict the label; told_90_au: the share told
grey_au_f1_difference      AU F1 of grey copies less that of the colour ones, at the checkpoint's thresholds
mediapipe_au_f1_difference, template_au_f1_difference    the same with landmarks that MediaPipe finds in the renders, or
                     the mean face's, in place of the renders' own
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import options, read_json, write_json

from mf2face.data.metrics import action_unit_scores, emotion_scores
from mf2face.data.synthetic.subjects import STYLES, is_rendered
from mf2face.files import checksum
from mf2face.inference.model import load_model
from mf2face.training.build import synthetic_faces
from mf2face.training.cards import write_card
from mf2face.training.reliability import Answers, calibrate, coverage, write_grades
from processing_mf2.detection import MediaPipeDetector, missing_networks
from processing_mf2.image_io import read_image


TEST_PEOPLE, CALIBRATION_PEOPLE = 11, 12
"""Seeds of people; training draws those of seed 1."""


class Faces:
    """Rendered or drawn faces, as many of each style (joined by "+"), with their labels, and a model's answers."""

    def __init__(self, style: str, seed: int, images: int, label_set: str) -> None:
        rows, names = synthetic_faces(images, style, seed=seed, label_set=label_set), style.split("+")
        self.pixels = [read_image(row["image"]) for row in rows]
        self.landmarks = [np.array(points, np.float32) for points in rows["landmarks"][:]]
        self.labels: Answers = (np.array(rows["emotion"][:]), np.array(rows["au_labels"][:]))
        kind, people = "rendered" if is_rendered(names[0]) else "drawn", len({*rows["subject"][:]})
        about = f"style {' and '.join(names)}, {len(rows):,} images of {people} people unseen in training"
        self.about = f"synthetic ({kind}) faces, {about}"

    def detected(self) -> list[np.ndarray | None]:
        """MediaPipe's landmarks of each face, where it finds one."""
        detector = MediaPipeDetector()
        found = (detector.detect([image])[0] for image in self.pixels)
        return [faces[0].landmarks if faces else None for faces in found]

    def answers(self, pipeline: Any, *, grey: bool = False, landmarks: Sequence[Any] | None = None) -> Answers:
        points = self.landmarks if landmarks is None else landmarks
        images = [np.repeat(image.mean(0, keepdims=True), 3, 0) for image in self.pixels] if grey else self.pixels
        items = [{"image": image, "landmarks": known} for image, known in zip(images, points, strict=True)]
        found = [faces[0] for faces in pipeline(items, batch_size=32, landmark_source="template")]
        units = [[unit["probability"] for unit in face["action_units"].values()] for face in found]
        return np.array([list(face["emotions"].values()) for face in found]), np.array(units)

    def scores(self, processor: Any, answers: Answers) -> dict[str, float]:
        thresholds = processor.thresholds()
        scores = action_unit_scores(answers[1], self.labels[1], processor.action_units, thresholds=thresholds)
        scores |= emotion_scores(answers[0], self.labels[0], processor.emotions)
        names = (processor.action_units, processor.emotions)
        scores |= coverage(answers, self.labels, *names, processor.conformal, thresholds)
        return {name: value for name, value in scores.items() if isinstance(value, float)}


def measure(folder: Path, styles: Sequence[str], images: int) -> tuple[dict, dict, dict, dict | None]:
    """Scores by data set, what these are, further figures, and cuts if the checkpoint had none."""
    loaded = load_model(folder, device="cpu")
    pipeline, processor = loaded.pipeline, loaded.pipeline.processor
    label_set, conformal = pipeline.model.config.label_set, None
    if processor.conformal is None:
        others = Faces(styles[0], CALIBRATION_PEOPLE, images, label_set)
        conformal = calibrate(others.answers(pipeline), others.labels, processor.action_units, processor.emotions)
        processor.conformal = conformal
    test, shifted = (Faces(style, TEST_PEOPLE, images, label_set) for style in styles)
    data = {"test": test, "style_shift": shifted}
    rendered = {name: faces.scores(processor, faces.answers(pipeline)) for name, faces in data.items()}
    changes: dict[str, dict[str, Any]] = {"grey": {"grey": True}, "template": {"landmarks": [None] * len(test.pixels)}}
    if not missing_networks():
        detected = test.detected()
        own = zip(detected, test.landmarks, strict=True)
        changes["mediapipe"] = {"landmarks": [own_points if found is None else found for found, own_points in own]}
    figures = {}
    for name, change in changes.items():
        scores = test.scores(processor, test.answers(pipeline, **change))
        figures[f"{name}_au_f1_difference"] = scores["au_f1_tuned_macro"] - rendered["test"]["au_f1_tuned_macro"]
    return rendered, {name: faces.about for name, faces in data.items()}, figures, conformal


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--photographs", type=Path, help="what photographs.py --json wrote for these weights")
    parser.add_argument("--source", help="whose photographs they are, for the card")
    parser.add_argument("--styles", nargs=2, help="those that training saw, such as studio+street; one that it did not")
    parser.add_argument("--images", type=int, default=1024, help="of each style")
    given = parser.parse_args(argv)
    photographs = {}
    if given.photographs is not None:
        photographs = read_json(given.photographs) or {}
        mark = photographs.get("model_checksum")
        if mark != checksum(given.folder / "model.safetensors"):
            parser.error(
                f"--photographs: {given.photographs} was measured with weights of checksum {mark}, expected those of "
                f"{given.folder}; run photographs.py --model {given.folder} --scores --json {given.photographs}"
            )
        if not photographs.get("mediapipe_landmarks"):
            parser.error(f"--photographs: {given.photographs} was measured with other landmarks, expected mediapipe's")
    styles = given.styles or usual_styles(given.folder)
    rendered, facts, figures, conformal = measure(given.folder, styles, given.images)
    if photographs:
        source = f" of {given.source}" if given.source else ""
        facts["photographs"] = f"{photographs['photographs']:,.0f} photographs{source}, labels of emotion only"
    whole = {f"{where}/{name}": value for where, scores in rendered.items() for name, value in scores.items()}
    kept = ("coverage", "told", "au_f1_macro", "au_f1_tuned_macro", "emotion_macro_recall")
    figures |= {name: value for name, value in whole.items() if name.partition("/")[2].startswith(kept)}
    grades = write_grades(given.folder, rendered, photographs, facts, figures, conformal)
    if (given.folder / "run.json").is_file():
        write_card(given.folder)
    print("\n".join(f"{name}: {what}" for name, what in facts.items()))
    print("\n".join(f"{label:<12}{grade}" for label, grade in grades.items()))
    for name in sorted(name for name in figures if name.endswith(("difference", "_au", "_emotion", "macro"))):
        print(f"{name:<40}{figures[name]:8.3f}")
    write_json(given.json, {**whole, **figures})
    return figures


def usual_styles(folder: Path) -> tuple[str, str]:
    """Those that the checkpoint was trained on, and one that it was not, of the same kind if there is one."""
    trained = (read_json(folder / "run.json") or {}).get("drawn", {}).get("style", "studio+street")
    seen = trained.split("+")
    others = [style for style in reversed(STYLES) if style not in seen]
    return trained, min(others, key=lambda style: is_rendered(style) != is_rendered(seen[0]))


if __name__ == "__main__":
    main()
