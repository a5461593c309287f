"""What the `mf2` command costs beside the bare model, and the model beside a plain ViT-B; ONNX and 8 bits beside torch.

python examples/benchmark/inference.py [--size base] [--images 500] [--only folder vit engines f1 memory curve]
    [--au_queries N] [--rounds 5] [--json FILE]

Weights are random, faces drawn; `f1` alone asks the embedded checkpoint. One thread unless OMP_NUM_THREADS says other.
What is compared takes turns, in short rounds and turning order; figures are medians over the rounds of ratios within
one round. Every ratio of time has a twin `..._cpu` of CPU-seconds, which other work on the machine hardly moves.

folder_over_bare       seconds of the whole command over a folder (start, model, decoding, rows written, batch size
                       found by itself), over those of bare forward passes of as many ready faces; at most 1.25
over_vit_pipeline      seconds of AUs and emotion of image files, over those of transformers' image-classification
                       pipeline with a plain ViT-B (--size tiny: a narrow one) for the same files; at most 1.6
onnx_over_eager        speed of ONNX over speed of torch; at least 1
int8_over_eager        speed of 8 bits over speed of torch; at least 1.5
int8_f1_loss           macro AU F1 of the embedded checkpoint minus that of its 8 bits, on drawn faces; at most 0.01
memory_folder_ratio    peak memory of the command over a ten times larger folder, over that of a folder; 1 is flat
memory_video_ratio     the same of a video ten times as long
cost_N                 seconds of the whole forward pass with N queries an AU, over those of the tower alone
f1_N                   with --accuracy DIR: macro AU F1 of short trainings of the tiny size with N queries
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch
from inference_command import bare_seconds, command_cost, memory_ratios, write_faces
from inference_curve import cost_curve, draw_curve, trained_scores
from report import write_json

from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.export import INPUTS, example_inputs, export_onnx, quantize_onnx, session
from processing_mf2 import MF2Processor, face_pipeline


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import export_model


PARTS = ("folder", "vit", "engines", "f1", "memory", "curve")


def spent(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall, and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, title: str) -> list[dict[str, tuple[float, float]]]:
    """The first round warms up and is left out."""
    names, measured = list(calls), []
    for number in range(rounds + 1):
        turned = names[number % len(names) :] + names[: number % len(names)]
        measured.append({name: spent(calls[name]) for name in turned})
    for name in names:
        wall, cpu = (statistics.median(times[name][kind] for times in measured[1:]) for kind in (0, 1))
        print(f"{title}: {name:22} {wall:8.3f}s, CPU {cpu:8.3f}s")
    return measured[1:]


def ratio(measured: Sequence[dict[str, tuple[float, float]]], over: str, under: str, name: str) -> dict[str, float]:
    found = {}
    for kind, suffix in enumerate(("", "_cpu")):
        found[name + suffix] = statistics.median(times[over][kind] / times[under][kind] for times in measured)
    return found


def config_of(size: str, au_queries: int | None) -> MF2Config:
    return MF2Config.from_size(size, **({} if au_queries is None else {"au_config": {"num_query_tokens": au_queries}}))


def folder_over_bare(size: str, au_queries: int | None, images: int, batch_size: int, rounds: int) -> dict[str, float]:
    """Rounds of bare passes come before and after the one command, a command over 500 images being long enough."""
    config = config_of(size, au_queries)
    model = MF2ForPreTraining(config).eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_faces(folder / "images", images)
        model.save_pretrained(folder / "model")
        MF2Processor.for_model(config).save_pretrained(folder / "model")
        batch, passes = example_inputs(model, batch_size), max(1, images // batch_size // 4)
        before = [bare_seconds(model, batch, passes) for _ in range(rounds)]
        cost = command_cost(folder / "images", folder / "rows.csv", "--model", str(folder / "model"))
        after = [bare_seconds(model, batch, passes) for _ in range(rounds)]
    found = {"folder_batch_size": cost["batch_size"], "folder_images": images}
    for kind, suffix in (("wall", ""), ("cpu", "_cpu")):
        bare = images * statistics.median(times[kind] for times in (*before, *after))
        print(f"folder: {images} images, {kind}: command {cost[kind]:.1f}s, bare forward {bare:.1f}s")
        found[f"folder_over_bare{suffix}"] = cost[kind] / bare
    return found


def over_vit_pipeline(size: str, au_queries: int | None, images: int, batch_size: int, rounds: int) -> dict[str, float]:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    config = config_of(size, au_queries)
    model, processor = MF2ForFaceAnalysis(config).eval(), MF2Processor.for_model(config)
    narrow = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192} if size == "tiny" else {}
    vit = ViTForImageClassification(ViTConfig(num_labels=20, **narrow)).eval()
    theirs = pipeline("image-classification", model=vit, image_processor=ViTImageProcessor(), device="cpu")
    ours = face_pipeline("face-analysis", model, processor, device="cpu", landmark_source="template")
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(path) for path in write_faces(Path(scratch), images)]
        calls = {
            "mf2": lambda: ours(paths, batch_size=batch_size),
            "vit": lambda: theirs(paths, batch_size=batch_size),
        }
        measured = in_turns(calls, rounds, f"vit, {images} files, {config.au_config.num_query_tokens} queries an AU")
    return ratio(measured, "mf2", "vit", "over_vit_pipeline")


def engine_speeds(size: str, au_queries: int | None, batch_size: int, rounds: int) -> dict[str, float]:
    model = MF2ForFaceAnalysis(config_of(size, au_queries)).eval()
    batch = dict(zip(INPUTS, example_inputs(model, batch_size), strict=True))
    with tempfile.TemporaryDirectory() as scratch:
        file = export_onnx(model, scratch)
        runs = {"onnx": session(file), "int8": session(quantize_onnx(file))}
        megabytes = {path.stem: path.stat().st_size / 2**20 for path in Path(scratch).glob("*.onnx")}
    print("engines: " + ", ".join(f"{name} {value:.0f} MiB" for name, value in sorted(megabytes.items())))
    calls: dict[str, Callable[[], object]] = {"eager": lambda: export_model.by_torch(model, batch)}
    calls |= {name: lambda run=run: export_model.by_onnx(run, batch) for name, run in runs.items()}
    measured = in_turns(calls, rounds, f"engines, {batch_size} faces")
    found = {}
    for name in runs:  # speeds: the other one's seconds stand above
        found |= ratio(measured, "eager", name, f"{name}_over_eager")
    return found


def int8_f1_loss(faces: int) -> dict[str, float]:
    figures = export_model.main(["--faces", str(faces)])
    return {"int8_f1_loss": figures["torch"]["f1"] - figures["int8"]["f1"]}


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("base", "tiny"))
    parser.add_argument("--images", type=int, default=500, help="of the folder; ten times as many for memory")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--au_queries", type=int, help="queries an AU; those of the size unless given")
    parser.add_argument("--batch_size", type=int, default=4, help="of what is compared with; the command finds its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vit_images", type=int, default=8, help="files of a round")
    parser.add_argument("--f1_faces", type=int, default=1600)
    parser.add_argument("--video_minutes", type=float, default=20, help="of the longer video")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="points of the curve")
    parser.add_argument("--accuracy", type=Path, help="train the curve's points there, or read what is finished")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--picture", type=Path, help="the curve as a PNG")
    parser.add_argument("--json", help="write the figures there, as one flat object")
    given = parser.parse_args(argv)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the command's too
    torch.manual_seed(0)
    model = (given.size, given.au_queries)
    print(f"{given.size}, {threads} thread, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "folder": lambda: folder_over_bare(*model, given.images, given.batch_size, given.rounds),
        "vit": lambda: over_vit_pipeline(*model, given.vit_images, given.batch_size, given.rounds),
        "engines": lambda: engine_speeds(*model, given.batch_size, given.rounds),
        "f1": lambda: int8_f1_loss(given.f1_faces),
        "memory": lambda: memory_ratios(given.images, given.video_minutes),
        "curve": lambda: cost_curve(given.size, given.queries, given.batch_size, given.rounds),
    }
    figures: dict[str, float] = {}
    for part in PARTS:
        if part in given.only:
            figures |= parts[part]()
    if given.accuracy is not None:
        figures |= trained_scores(given.accuracy, given.queries, given.seeds)
    if "curve" in given.only:
        draw_curve(figures, given.queries, given.size, given.picture)
    for name, figure in figures.items():
        print(f"{name:28} {figure:10.4f}")
    write_json(given.json, figures)
    return figures


if __name__ == "__main__":
    main()
