"""A run that ends on the Hub: the real client, a real server of 127.0.0.1, and nothing there that should not be."""

import os
import subprocess
import sys
from pathlib import Path

from loopback_hub import LoopbackHub
from safetensors.torch import load

import train


def test_a_run_publishes_its_result_once_and_nothing_else(tmp_path: Path) -> None:
    command = ["--push_to_hub", "True", "--hub_model_id", "org/mine", "--output_dir", str(tmp_path / "mine")]
    command += ["--num_images", "96", "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    command += ["--eval_strategy", "no", "--load_best_model_at_end", "False", "--use_captions", "False"]
    command += ["--vision_name_or_path", "none", "--save_half", "True", "--use_cpu", "True", "--disable_tqdm", "True"]
    with LoopbackHub() as hub:
        done = subprocess.run(
            [sys.executable, train.__file__, *command],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", **hub.environment(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "published: " in done.stdout
        revisions = hub.repos["org/mine"]
    assert len(revisions) <= 2, "one commit beside the empty one that a repository may begin with"
    files = revisions[-1][1]
    needed = {
        "model.safetensors",
        "config.json",
        "processor_config.json",
        "metrics.json",
        "README.md",
        "mf2_hub_code.py",
    }
    assert needed <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".lock", ".pt", ".pth")) or "checkpoint" in name]
    assert files["README.md"] == (tmp_path / "mine" / "README.md").read_bytes(), "our card, not the Trainer's"
    halves = {str(tensor.dtype) for tensor in load(files["model.safetensors"]).values() if tensor.is_floating_point()}
    assert halves == {"torch.float16"}
