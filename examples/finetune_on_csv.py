"""Your own pictures and a csv file become a data set, an adapter for it, and answers with that adapter.

python examples/finetune_on_csv.py [--folder PICTURES --landmarks detector] [--out FOLDER] [options of train.py]

1. PICTURES holds labels.csv with a line a picture: image, emotion, AU1, AU2, ... (empty: unknown), subject, split.
2. `build_dataset.py own` checks every line, cuts the faces out, and keeps each person on one side of the split.
3. `train.py --task dfn` trains a small adapter beside the frozen model and tunes a threshold for each action unit.
4. `face_pipeline("face-analysis", FOLDER/adapter)` reads new pictures with the adapter, its processor and its base.
Without --folder it renders faces first, synthetic ones that teach nothing about people; offline, in about a minute.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from configuration_mf2.facs import LABEL_SETS
from mf2face.data.synthetic.faces import FRAMES_PER_SUBJECT, draw_example, synthetic_truth
from mf2face.inference.model import EMBEDDED
from processing_mf2 import face_pipeline
from processing_mf2.detection import missing_networks


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import build_dataset

import train
from mf2face.command_line import positive, run_as_command


def draw_pictures(folder: Path, count: int) -> None:
    """Stands in for your data: images, and a csv of their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, names = synthetic_truth(count, "street", seed=5), LABEL_SETS["mfa"]
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "emotion", *names.action_units, "subject"])
        for index in range(count):
            Image.fromarray(draw_example(index, style="street", seed=5, size=160)[0]).save(folder / f"{index}.png")
            found = (names.emotions[labels["emotion"][index]], *labels["au_labels"][index])
            table.writerow([f"{index}.png", *found, f"person {index // FRAMES_PER_SUBJECT}"])


def finetune(pictures: Path, out: Path, landmarks: str, options: list[str]) -> list[dict[str, Any]]:
    data, adapter = out / "dataset", out / "adapter"
    whole = ["--near", "tell", "--sizes", "train=0.6", "validation=0.2", "test=0.2"]
    build_dataset.main(["own", str(pictures), str(data), "--landmarks", landmarks, *whole])
    scores = train.main(["--task", "dfn", "--dataset", str(data), "--output_dir", str(adapter), *options])
    scores_shown = {name: f"{scores[name]:.3f}" for name in ("au_f1_macro", "emotion_top1") if name in scores}
    print(f"on people that training did not see: {scores_shown}; everything else is in {adapter}/metrics.txt")
    analyse = face_pipeline("face-analysis", adapter)  # an adapter's folder names its base model
    images = sorted(str(file) for file in pictures.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))[:3]
    source = "template" if landmarks == "template" else "face_alignment" if missing_networks() else "mediapipe"
    found = [faces[0] for faces in analyse(images, landmark_source=source)]
    for image, face in zip(images, found, strict=True):
        print(f"{Path(image).name}: {face.get('emotion')}, {face.get('active_action_units')}")
    return found


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="your pictures and labels.csv; rendered unless given")
    parser.add_argument("--landmarks", default="template", choices=("template", "detector"), help="of one face each")
    parser.add_argument("--out", help="keep data set and adapter there; they are removed unless given")
    parser.add_argument("--pictures", type=positive, default=160, help="how many are rendered")
    given, options = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        pictures = Path(given.folder or Path(scratch) / "pictures")
        if not given.folder:
            draw_pictures(pictures, given.pictures)
        base = [] if "--model_name_or_path" in options else ["--model_name_or_path", str(EMBEDDED)]
        return finetune(pictures, Path(given.out or scratch), given.landmarks, [*base, *options])


if __name__ == "__main__":
    run_as_command(main)
