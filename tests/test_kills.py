"""Killed at every file operation and at random times, then started again: the same files with the same content, none
lost, doubled or left behind."""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_points import KillServer, Run


RANDOM_KILLS = 8
PRELOAD = (
    "mf2face.inference.analyze",
    "mf2face.inference.explain.folder",
    "mf2face.training.stores",
    "train",
    "mf2face.training.run",
    "torch.utils.data",
)
CHANGING = (".about.json", "trainer_state.json", "training_args.bin", "cost.json", "README.md", "metrics.json", ".png")
"""Names of files in which times, and how often a run was begun, are written; of others the content is compared."""


def mf2(folder: Path, ending: str, *more: str) -> None:
    from mf2face.inference.cli import main

    more = [word.replace("FOLDER", str(folder)) for word in more]
    options = ["--aligned", "--quiet", "--batch_size", "1", "-o", f"{folder}/out/rows.{ending}"]
    sys.exit(main([f"{folder}/in", *options, *more]))


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
    rows = MFASynthetic(8, size=64, cache_dir=folder / "in")
    examples = MF2Examples(rows, MF2Processor.for_model(config), texts=False)
    load_or_store(MF2VisionTower(config.vision_config), [examples], folder / "out", batch_size=2)


def dataset_cache(folder: Path) -> None:
    from mf2face.data.synthetic.faces import MFASynthetic

    assert len(MFASynthetic(8, size=64, cache_dir=folder / "out")) == 8


def training(folder: Path) -> None:
    import datasets

    import train

    datasets.config.HF_DATASETS_CACHE = folder / "in"
    options = "--task full --num_images 64 --use_cpu True --disable_tqdm True --per_device_train_batch_size 8"
    options += " --max_steps 4 --save_strategy steps --save_steps 2 --eval_strategy steps --eval_steps 2"
    train.main([*options.split(), "--output_dir", f"{folder}/out/run"])


JOBS = {
    "mf2 csv": (mf2, "csv"),
    "mf2 jsonl": (mf2, "jsonl"),
    "mf2 parquet": (mf2, "parquet"),
    "mf2 why": (mf2, "csv", "--why", "FOLDER/out/why", "--occlusion"),
    "dfn store": (dfn_store,),
    "vision store": (vision_store,),
    "dataset cache": (dataset_cache,),
    "train": (training,),
}


class Trial:
    """One job in a folder that is made anew for every run that begins."""

    def __init__(self, server: KillServer, root: Path, name: str) -> None:
        self.server, self.name = server, name
        self.folder, self.inputs = root / "work", root / "inputs"
        self.inputs.mkdir(exist_ok=True)
        if name.startswith("mf2") and not any(self.inputs.iterdir()):
            from analysis_media import write_faces, write_video

            write_faces(self.inputs, 3)
            write_video(self.inputs / "v.avi", 2)
        if name in ("vision store", "train"):
            self.begin()
            self.run()
            shutil.rmtree(self.inputs)
            (self.folder / "in").rename(self.inputs)  # with the drawn faces, whose cache is a job of its own
        self.begin()
        self.undisturbed = self.run()
        self.expected = self.found()

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "out").mkdir(parents=True)
        shutil.copytree(self.inputs, self.folder / "in")

    def run(self, **kill: float) -> Run:
        run = self.server.run([__file__, self.name, str(self.folder)], timeout=900, **kill)
        assert kill or run.returncode == 0, run.output[-3000:]
        return run

    def found(self) -> dict[str, bytes]:
        """By name; a folder's, and that of a file that changes, without content."""
        return {
            str(path.relative_to(self.folder)): _content(path)
            for path in sorted(self.folder.rglob("*"))
            if path.suffix != ".lock"
        }

    def killed_and_repeated(self, **kill: float) -> list[str]:
        """What differs from the undisturbed run."""
        self.begin()
        at = self.run(**kill)
        left = "\n".join(sorted(self.found().keys() - self.expected.keys()))
        again = self.server.run([__file__, self.name, str(self.folder)], timeout=900)
        if again.returncode:
            return [
                f"{kill} {at.operations[-1:]}: the repeated run ended with {again.returncode}: {again.output[-600:]}"
            ]
        found = self.found()
        wrong = [f"lost {name}" for name in self.expected.keys() - found.keys()]
        wrong += [f"left behind {name}" for name in found.keys() - self.expected.keys()]
        wrong += [
            f"changed {name}" for name in found.keys() & self.expected.keys() if found[name] != self.expected[name]
        ]
        return [f"{kill} after {at.operations[-1:]}: {each} (after the kill there was {left!r})" for each in wrong]


def _content(path: Path) -> bytes:
    if path.is_dir() or path.name.endswith(CHANGING):
        return b""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return repr(pq.read_table(path).to_pylist()).encode()
    if path.name in ("run.json", "complete.json"):  # all but the run's cost, and the sizes of files that change
        content = json.loads(path.read_text())
        return repr(
            {name: content[name] for name in content if name != "cost" and not name.endswith(CHANGING)}
        ).encode()
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KillServer, Path]]:
    root = tmp_path_factory.mktemp("kills")
    environment = {"HF_HOME": f"{root}/hub", "XDG_CACHE_HOME": f"{root}/cache", "HF_HUB_OFFLINE": "1"}
    with KillServer(PRELOAD, [root / "work"], **environment) as server:
        yield server, root


@pytest.fixture
def trial(place: tuple[KillServer, Path], request: pytest.FixtureRequest) -> Trial:
    server, root = place
    shutil.rmtree(root / "inputs", ignore_errors=True)
    return Trial(server, root, request.param)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("trial", JOBS, indirect=True)
def test_a_killed_run_that_is_repeated_ends_as_if_it_had_not_been_killed(trial: Trial) -> None:
    count, chance = len(trial.undisturbed.operations), random.Random(trial.name)
    assert count >= 3 and len(trial.expected) >= 3
    every = int(os.environ.get("MF2_KILLS_EVERY", "1"))
    kills = [{"kill_at": number} for number in range(1, count + 1, every)]
    kills += [{"kill_after": chance.uniform(0.05, 1.0) * trial.undisturbed.seconds} for _ in range(RANDOM_KILLS)]
    wrong = [each for kill in kills for each in trial.killed_and_repeated(**kill)]
    total = f"{len(kills)} kills ({RANDOM_KILLS} at random times; {count} file operations)"
    print(f"{trial.name}: {total}, {len(wrong)} differences")
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    job, *arguments = JOBS[sys.argv[1]]
    job(Path(sys.argv[2]), *arguments)
