"""Jobs that tests/test_kills.py kills, from FOLDER/in to FOLDER/out: `python tests/kill_jobs.py JOB FOLDER`."""

import runpy
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
PICTURES = 14
PRELOAD = (
    *("mf2face.inference.analyze", "mf2face.inference.explain.folder", "mf2face.training.stores", "train"),
    *("mf2face.training.run", "torch.utils.data", "mf2face.data.build.mfa", "mf2face.data.corpora.read"),
    *("mf2face.captions.run", "mf2face.captions.batch", "openai", "aiohttp"),
)


def mf2(folder: Path, ending: str, *more: str) -> None:
    from mf2face.inference.cli import main

    options = ["--aligned", "--quiet", "--batch_size", "1", "-o", f"{folder}/out/rows.{ending}"]
    sys.exit(main([f"{folder}/in", *options, *(word.replace("FOLDER", str(folder)) for word in more)]))


def dfn_store(folder: Path) -> None:
    import torch
    from conftest import shake, tiny_batch, tiny_config
    from peft import get_peft_model

    from mf2face.training.stores import frozen_states
    from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis

    torch.manual_seed(0)
    base = shake(MF2ForFaceAnalysis(tiny_config()))
    model = get_peft_model(base, DFNConfig(bottleneck=4, layers=3, pathways=["visual"]))
    batch = tiny_batch(tiny_config(), rows=10)
    examples = [{name: batch[name][row] for name in ("pixel_values", "landmarks")} for row in range(10)]
    frozen_states(model, examples, folder / "out" / "store", data="faces", batch_size=2, shard_rows=4)


def vision_store(folder: Path) -> None:
    import torch

    from configuration_mf2 import MF2Config
    from mf2face.data.examples import MF2Examples
    from mf2face.data.synthetic.faces import MFASynthetic
    from mf2face.training.stores import load_or_store
    from modeling_mf2.vision import MF2VisionTower
    from processing_mf2 import MF2Processor

    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    rows = MFASynthetic(8, "drawn", size=64, cache_dir=folder / "in")
    examples = MF2Examples(rows, MF2Processor.for_model(config), texts=False)
    load_or_store(MF2VisionTower(config.vision_config), [examples], folder / "out", batch_size=2)


def dataset_cache(folder: Path) -> None:
    from mf2face.data.synthetic.faces import MFASynthetic

    assert len(MFASynthetic(8, "drawn", size=64, cache_dir=folder / "out")) == 8


def training(folder: Path) -> None:
    import datasets

    import train

    datasets.config.HF_DATASETS_CACHE = folder / "in"
    options = (
        "--task full --style drawn --num_images 64 --use_cpu True --disable_tqdm True --per_device_train_batch_size 8"
    )
    options += " --max_steps 4 --save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 2"
    train.main([*options.split(), "--output_dir", f"{folder}/out/run"])


def detected_build(folder: Path) -> None:
    import numpy as np

    from mf2face.data.build.landmark_cache import LandmarkCache
    from mf2face.data.build.mfa import BuildOptions, build_mfa
    from mf2face.data.build.splits import plan_mfa
    from mf2face.data.corpora.read import read_corpus
    from processing_mf2.landmarks import DetectedFace, template_landmarks

    class Middle:
        def detect(self, images):
            sizes = [image.shape[1:] for image in images]
            boxes = [np.array([0.0, 0.0, width, height]) for height, width in sizes]
            faces = zip(boxes, sizes, strict=True)
            return [[DetectedFace(box, 0.9, template_landmarks(*size), np.ones(68))] for box, size in faces]

    frames, split = plan_mfa(read_corpus("own", folder / "in"))
    options = BuildOptions(shard_rows=4, crop_size=64, skip_unreadable=True)
    with LandmarkCache(folder / "in", Middle(), file=folder / "out" / "landmarks.sqlite", batch_size=3) as cache:
        build_mfa(frames, split, folder / "out" / "mfa", options, cache)


def example(folder: Path, script: str, options: str) -> None:
    sys.argv = [script, *options.replace("FOLDER", str(folder)).split()]
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


BUILD = "own FOLDER/in FOLDER/out/mfa --landmarks template --shard_rows 3 --skip_unreadable --near drop"
CAPTIONS = "--dataset FOLDER/in --out FOLDER/out"
CHAT = f"{CAPTIONS} --writer chat --model m --concurrency 3"
JOBS = {
    "mf2 csv": (mf2, "csv"),
    "mf2 jsonl": (mf2, "jsonl"),
    "mf2 parquet": (mf2, "parquet"),
    "mf2 why": (mf2, "csv", "--why", "FOLDER/out/why", "--occlusion"),
    "dfn store": (dfn_store,),
    "vision store": (vision_store,),
    "dataset cache": (dataset_cache,),
    "train": (training,),
    "build": (example, "build_dataset.py", BUILD),
    "build of other options": (example, "build_dataset.py", f"{BUILD} --shard_rows 5"),
    "build by a detector": (detected_build,),
    "captions by rule": (example, "write_captions.py", CAPTIONS),
    "captions by chat": (example, "write_captions.py", CHAT),
}


if __name__ == "__main__":
    job, *arguments = JOBS[sys.argv[1]]
    job(Path(sys.argv[2]), *arguments)
