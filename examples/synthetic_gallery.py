"""Contact sheets of the synthetic faces: drawn ones as PNG files, rendered ones as JPEG files and a short film.

python examples/synthetic_gallery.py [--rendered] [--out outputs/gallery] [--size 160] [--subjects 6]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from mf2face.command_line import positive, run_as_command
from mf2face.data.synthetic.actions import RENDERED_AUS
from mf2face.data.synthetic.drawing import STYLES, draw_face
from mf2face.data.synthetic.faces import draw_example
from mf2face.data.synthetic.geometry import DRAWABLE_AUS
from mf2face.data.synthetic.places import RENDERED_STYLES, Shot
from mf2face.data.synthetic.rendering import Sitter, render_face
from mf2face.data.synthetic.subjects import ACTIVE_FROM, FRAMES_PER_SUBJECT, FRAMES_PER_VIDEO, scene, subject


def write_sheet(path: Path, rows: list[list[np.ndarray]]) -> Path:
    sheet = np.concatenate([np.concatenate(row, 1) for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 85)):
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


def sitters(subjects: int, size: int) -> list[Sitter]:
    return [Sitter(subject(0, "studio", number), size) for number in range(subjects)]


def rendered_action_units(subjects: int, size: int, strength: float) -> list[list[np.ndarray]]:
    """Two rows a subject: the face at rest, then each action unit alone."""
    shown, rows = {"rest": {}, **{name: {name: strength} for name in RENDERED_AUS}}, []
    for sitter in sitters(subjects, size):
        faces = [titled(render_face(sitter, aus, Shot(), size)[0], name) for name, aus in shown.items()]
        half = (len(faces) + 1) // 2
        rows += [faces[:half], faces[half:] + [np.zeros_like(faces[0])] * (2 * half - len(faces))]
    return rows


def left_and_right(subjects: int, size: int) -> list[list[np.ndarray]]:
    """A row a subject: one-sided action units on the person's left, then on the right."""
    rows = []
    for sitter in sitters(subjects, size):
        row = []
        for name in ("AU2", "AU6", "AU10", "AU12", "AU14", "AU15", "AU43"):
            for side, word in enumerate(("left", "right")):
                sides = np.zeros((len(RENDERED_AUS), 2), np.float32)
                sides[RENDERED_AUS.index(name), side] = 1
                row.append(titled(render_face(sitter, sides, Shot(), size)[0], f"{name} {word}"))
        rows.append(row)
    return rows


def random_samples(size: int) -> list[list[np.ndarray]]:
    """Twenty of each rendered style, of other people each."""
    per, rows = FRAMES_PER_SUBJECT, []
    for style in RENDERED_STYLES:
        faces = [draw_example(number * per + number % per, style=style, size=size)[0] for number in range(20)]
        rows += [faces[:10], faces[10:]]
    return rows


def film(path: Path, size: int) -> Path:
    """Ten seconds of one face: surprise, joy, anger, disgust, each rising and fading."""
    frames, rate = 150, 15
    peaks = (
        {"AU1": 0.9, "AU2": 0.9, "AU5": 0.7, "AU25": 0.6, "AU26": 0.8},
        {"AU6": 0.9, "AU12": 1.0, "AU25": 0.7},
        {"AU4": 1.0, "AU7": 0.7, "AU23": 0.8},
        {"AU9": 0.9, "AU10": 0.7, "AU4": 0.3},
    )
    sitter = Sitter(subject(0, "studio", 3), size)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (size, size))
    if not writer.isOpened():
        raise OSError(f"out: {path} could not be written. Choose a folder you may write to")
    for number in range(frames):
        index, within = divmod(number / frames * len(peaks), 1)
        level = float(np.sin(np.pi * within) ** 0.7)
        turn = 2 * np.pi * number / frames
        shot = Shot(yaw=0.22 * float(np.sin(turn)), pitch=0.05 * float(np.sin(2 * turn)))
        shown = {name: level * strength for name, strength in peaks[int(index)].items()}
        writer.write(cv2.cvtColor(render_face(sitter, shown, shot, size)[0], cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def rendered_sheets(out: Path, subjects: int, size: int) -> list[Path]:
    sheets = {
        "action_units_full": rendered_action_units(subjects, size, 1.0),
        "action_units_threshold": rendered_action_units(subjects, size, ACTIVE_FROM / 5),
        "left_right": left_and_right(subjects, size),
        "random": random_samples(size),
        "videos": [
            [draw_example(i + j, style="street", size=size)[0] for j in range(FRAMES_PER_VIDEO)] for i in (40, 80)
        ],
    }
    written = [write_sheet(out / f"rendered_{name}.jpg", rows) for name, rows in sheets.items()]
    return [*written, film(out / "rendered_film.mp4", max(size, 224))]


def main(argv: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gallery"))
    parser.add_argument("--size", type=positive, default=160, help="pixels a face")
    parser.add_argument("--subjects", type=positive, default=6)
    parser.add_argument("--rendered", action="store_true", help="people rendered in 3D in place of drawn ones")
    arguments = parser.parse_args(argv)
    size, people = arguments.size, range(arguments.subjects)
    if arguments.rendered:
        written = rendered_sheets(arguments.out, len(people), size)
        print("\n".join(map(str, written)))
        return written
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
