"""Contact sheets of people rendered in 3D, as JPEG files, and a film of ten seconds as WebP.

python examples/synthetic_gallery.py [--out outputs/gallery] [--size 96] [--subjects 5]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mf2face.command_line import positive, run_as_command
from mf2face.data.synthetic.actions import RENDERED_AUS
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.places import RENDERED_STYLES, Shot
from mf2face.data.synthetic.rendering import Sitter, render_face
from mf2face.data.synthetic.subjects import ACTIVE_FROM, FRAMES_PER_SUBJECT, subject


PEAKS = (  # surprise, joy, anger, disgust
    {"AU1": 0.9, "AU2": 0.9, "AU5": 0.7, "AU25": 0.6, "AU26": 0.8},
    {"AU6": 0.9, "AU12": 1.0, "AU25": 0.7},
    {"AU4": 1.0, "AU7": 0.7, "AU23": 0.8},
    {"AU9": 0.9, "AU10": 0.7, "AU4": 0.3},
)


def at(sitter: Sitter, shown: dict | np.ndarray, size: int, title: str = "", **shot: float) -> np.ndarray:
    pixels = render_face(sitter, shown, Shot(**shot), size)[0].copy()
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(pixels, title, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness, cv2.LINE_AA)
    return pixels


def one_sided(name: str, side: str) -> np.ndarray:
    sides = np.zeros((len(RENDERED_AUS), 2), np.float32)
    sides[RENDERED_AUS.index(name), "LR".index(side)] = 1
    return sides


def film(path: Path, sitter: Sitter, size: int, frames: int = 120) -> Path:
    pictures = []
    for number in range(frames):
        index, within = divmod(number / frames * len(PEAKS), 1)
        level, turn = float(np.sin(np.pi * within) ** 0.7), 2 * np.pi * number / frames
        shown = {name: level * strength for name, strength in PEAKS[int(index)].items()}
        pictures.append(Image.fromarray(at(sitter, shown, size, yaw=0.22 * np.sin(turn))))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=10_000 // frames, loop=0, quality=60)
    return path


def main(argv: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gallery"))
    parser.add_argument("--size", type=positive, default=96, help="pixels a face")
    parser.add_argument("--subjects", type=positive, default=5)
    given = parser.parse_args(argv)
    people = [Sitter(subject(0, "studio", number), given.size) for number in range(given.subjects)]
    size, levels = given.size, {"full": 1.0, "threshold": ACTIVE_FROM / 5}
    names, sheets = ("", *RENDERED_AUS), {}
    for word, level in levels.items():
        rows = [[at(one, {name: level} if name else {}, size, name) for name in names] for one in people]
        sheets[f"action_units_{word}"] = rows
    pairs = [(name, side) for name in ("AU2", "AU6", "AU10", "AU12", "AU14", "AU15", "AU43") for side in "LR"]
    sheets["left_right"] = [[at(one, one_sided(*pair), size, " ".join(pair)) for pair in pairs] for one in people]
    numbers = [FRAMES_PER_SUBJECT * number + number % FRAMES_PER_SUBJECT for number in range(20)]
    faces = [[draw_example(i, style=style, size=size)[0] for i in numbers] for style in RENDERED_STYLES]
    sheets["random"] = [half for row in faces for half in (row[:10], row[10:])]
    given.out.mkdir(parents=True, exist_ok=True)
    written = [film(given.out / "rendered_film.webp", people[0], 2 * size)]
    for name, rows in sheets.items():
        written.append(given.out / f"rendered_{name}.jpg")
        Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows])).save(written[-1], quality=95)
    print("\n".join(map(str, written)))
    return written


if __name__ == "__main__":
    run_as_command(main)
