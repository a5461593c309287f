"""The model as an ONNX file and in 8 bits: equal or nearly so, how large, how fast, and what the 8 bits cost.

python examples/export_model.py [--model FOLDER_OR_NAME] [--out FOLDER] [--faces 320]

Offline with the embedded checkpoint. Accuracy is macro F1 of the action units on rendered (synthetic) people that the
embedded model has not seen, at the checkpoint's thresholds. Speed is of one thread, the best of turns taken.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mf2face.command_line import positive, run_as_command
from mf2face.data.metrics import action_unit_scores
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from mf2face.inference.model import EMBEDDED
from modeling_mf2 import MF2ForFaceAnalysis
from modeling_mf2.export import INPUTS, export_onnx, quantize_onnx, session
from processing_mf2 import MF2Processor


# Seed 77: other people than those of any training here.
def rendered_faces(processor: MF2Processor, count: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    images, landmarks = zip(*(draw_example(index, seed=77) for index in range(count)), strict=True)
    batch = processor(images=list(images), landmarks=list(landmarks), return_tensors="pt")
    return {name: batch[name] for name in INPUTS}, synthetic_truth(count, seed=77)["au_labels"]


@torch.no_grad()
def by_torch(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> np.ndarray:
    return model(**batch).au_logits.numpy()


def by_onnx(run: object, batch: dict[str, torch.Tensor]) -> np.ndarray:
    return run.run(["au_logits"], {name: values.numpy() for name, values in batch.items()})[0]


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED))
    parser.add_argument("--out", help="keep the files there; they are removed unless given")
    parser.add_argument("--faces", type=positive, default=320)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = MF2ForFaceAnalysis.from_pretrained(given.model).eval()
    processor = MF2Processor.from_pretrained(given.model)
    batch, truth = rendered_faces(processor, given.faces)
    with tempfile.TemporaryDirectory() as scratch:
        file = export_onnx(model, Path(given.out or scratch))  # compares its answers with torch's by itself
        small = quantize_onnx(file)
        engines = {"torch": partial(by_torch, model)}
        engines |= {name: partial(by_onnx, session(path)) for name, path in (("onnx", file), ("int8", small))}
        sizes = {"torch": model.num_parameters() * 4, "onnx": file.stat().st_size, "int8": small.stat().st_size}
    few, times = {name: values[:32] for name, values in batch.items()}, {name: [] for name in engines}
    for _ in range(5):
        for name, answer in engines.items():
            start = time.perf_counter()
            answer(few)
            times[name].append((time.perf_counter() - start) / len(few["landmarks"]))
    figures: dict[str, dict[str, float]] = {}
    logits = {name: answer(batch) for name, answer in engines.items()}
    print(f"{'engine':8}{'MB':>8}{'ms a face':>11}{'macro AU F1':>13}{'largest difference of a logit':>31}")
    for name in engines:
        sure, cuts = 1 / (1 + np.exp(-logits[name])), model.config.thresholds
        f1 = action_unit_scores(sure, truth, model.config.action_units, thresholds=cuts)["au_f1_tuned_macro"]
        apart = float(np.abs(logits[name] - logits["torch"]).max())
        figures[name] = {"mb": sizes[name] / 1e6, "ms": 1e3 * min(times[name]), "f1": f1, "difference": apart}
        print("{:8}{mb:8.1f}{ms:11.1f}{f1:13.3f}{difference:31.6f}".format(name, **figures[name]))
    print(f"int8 costs {figures['torch']['f1'] - figures['int8']['f1']:.4f} of macro AU F1 (synthetic faces)")
    return figures


if __name__ == "__main__":
    run_as_command(main)
