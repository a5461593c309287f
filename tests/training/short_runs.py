"""Short runs of train.py on a few drawn faces, and what they leave."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

import train


ROOT = Path(__file__).parents[2]
SHORT = {
    **{
        "style": "drawn",
        "num_images": 96,
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 3,
        "warmup_steps": 0,
        "logging_steps": 1,
    },
    **{"per_device_train_batch_size": 16, "eval_strategy": "steps", "save_strategy": "steps"},
}
# The start of a script that kills its own process without warning in the middle of step DIE_AT.
DYING = """
import os, signal, sys
import train
from mf2face.training.trainer import MF2Trainer
step = MF2Trainer.training_step
def dying(self, *args, **kwargs):
    if self.state.global_step == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
MF2Trainer.training_step = dying
"""


def command(folder: Path | str, **options: object) -> list[str]:
    """`SHORT`, measured and saved at its end, unless `options` say otherwise; None leaves an option out."""
    given = {**SHORT, **options, "output_dir": folder}
    for name in ("eval_steps", "save_steps"):
        given.setdefault(name, given["max_steps"])
    parts = [(f"--{name}", *(value if isinstance(value, list) else [value])) for name, value in given.items()]
    return [str(word) for part in parts if part[1] is not None for word in part]


def short_run(folder: Path, **options: object) -> dict[str, float]:
    return train.main(command(folder, **options))


def history(folder: Path) -> list[dict[str, float]]:
    """What the newest checkpoint of a run has logged of training."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    entries = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "loss" in entry]


def assert_same_weights(one: Path, other: Path, name: str = "model.safetensors", **tolerance: float) -> None:
    weights, others = (load_file(folder / name) for folder in (one, other))
    assert set(weights) == set(others)
    for key, tensor in weights.items():
        torch.testing.assert_close(others[key], tensor, **({"atol": 0.0, "rtol": 0.0} | tolerance), msg=key)


def environment(**more: str) -> dict[str, str]:
    """Of a child process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}
