"""Contact sheets of the synthetic faces, as PNG files.

python examples/synthetic_gallery.py [--out outputs/gallery] [--size 160] [--subjects 6]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from mf2face.command_line import positive, run_as_command
from mf2face.data.synthetic.drawing import STYLES, draw_face
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.geometry import DRAWABLE_AUS
from mf2face.data.synthetic.subjects import ACTIVE_FROM, FRAMES_PER_SUBJECT, FRAMES_PER_VIDEO, scene, subject


def write_sheet(path: Path, rows: list[list[np.ndarray]]) -> Path:
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise OSError(f"out: {path} could not be written. Choose a folder you may write to")
    return path


def titled(pixels: np.ndarray, text: str) -> np.ndarray:
    pixels = pixels.copy()
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(pixels, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness, cv2.LINE_AA)
    return pixels


def with_landmarks(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    for x, y in np.round((landmarks - 0.5) * 16).astype(int).tolist():
        cv2.circle(pixels, (x, y), 20, (60, 255, 60), -1, cv2.LINE_AA, 4)
    return pixels


def action_unit_rows(subjects: int, size: int, strength: float) -> list[list[np.ndarray]]:
    """A row a subject: the face at rest, then each action unit alone."""
    rows = []
    for number in range(subjects):
        person, around = subject(0, "paint", number).identity, scene(0, "paint", number * FRAMES_PER_SUBJECT)
        shown = {"rest": {}, **{name: {name: strength} for name in DRAWABLE_AUS}}
        rows.append([titled(draw_face(person, aus, around, size)[0], name) for name, aus in shown.items()])
    return rows


def main(argv: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gallery"))
    parser.add_argument("--size", type=positive, default=160, help="pixels a face")
    parser.add_argument("--subjects", type=positive, default=6)
    arguments = parser.parse_args(argv)
    size, people = arguments.size, range(arguments.subjects)
    starts = [number * FRAMES_PER_SUBJECT + 4 for number in people]
    exact = [draw_example(index, size=size, exact_landmarks=True) for index in starts]
    error = [draw_example(index, size=size) for index in starts]
    sheets = {
        "action_units_full": action_unit_rows(len(people), size, 1.0),
        "action_units_threshold": action_unit_rows(len(people), size, ACTIVE_FROM / 5),
        "styles": [[titled(draw_example(i, style=style, size=size)[0], style) for i in starts] for style in STYLES],
        "landmarks": [[with_landmarks(*face) for face in faces] for faces in (exact, error)],
        "videos": [[draw_example(i + j, size=size)[0] for j in range(FRAMES_PER_VIDEO)] for i in (40, 80, 120)],
    }
    written = [write_sheet(arguments.out / f"synthetic_{name}.png", rows) for name, rows in sheets.items()]
    print("\n".join(map(str, written)))
    return written


if __name__ == "__main__":
    run_as_command(main)
