"""The main job on two processes: killed and continued it ends with the same weights; sharded it learns the same."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
SMALL = ["--vision_name_or_path", "none", "--use_cpu", "--disable_tqdm", "True", "--num_images", "96"]
SMALL += ["--label_set", "disfa", "--warmup_steps", "2", "--per_device_train_batch_size", "4"]
SMALL += ["--eval_strategy", "no", "--load_best_model_at_end", "False", "--save_strategy", "steps"]
SMALL += ["--logging_steps", "2"]

# Two processes, as torchrun makes them but from one import, unless torchrun started this. Each ends itself without
# warning in the middle of a step, where the environment says so. What follows training has tests of its own.
JOB = """
import os, signal, sys, traceback
sys.path.insert(0, {root!r})
import train
from mf2face.training import run as journey_mf2
from mf2face.training.trainer import MF2Trainer
step = MF2Trainer.training_step
def dying(self, *args, **kwargs):
    if self.state.global_step == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
MF2Trainer.training_step = dying
journey_mf2.draw_scores = journey_mf2.draw_curves = lambda *args: None
{more}
if "RANK" in os.environ:
    train.main(sys.argv[1:])
    sys.exit()
children = []
for rank in "01":
    if child := os.fork():
        children.append(child)
        continue
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    failed = 1
    try:
        train.main(sys.argv[1:])
        failed = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(failed)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print("SIGKILL" if -signal.SIGKILL in codes else "", file=sys.stderr)
sys.exit(any(codes))
"""

# Accelerate shards on GPUs alone (on CPUs it quietly makes DDP of it): here it is told to.
SHARDED = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
make = MF2Trainer.create_accelerator_and_postprocess
def sharded(self):
    make(self)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=False,
                                            state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    self.is_fsdp_enabled = True
def counted(self, *args, **kwargs):
    assert all(hasattr(parameter, "to_local") for parameter in self.model.parameters())
    return dying(self, *args, **kwargs)
MF2Trainer.create_accelerator_and_postprocess, MF2Trainer.training_step = sharded, counted
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("jobs")

    ports = itertools.count(29600 + os.getpid() % 3000)

    def run(
        arguments: list[str], die_at: int = -1, more: str = "", torchrun: bool = False
    ) -> subprocess.CompletedProcess:
        script = folder / "job.py"
        script.write_text(JOB.format(root=str(ROOT), more=more))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIE_AT": str(die_at), "GLOO_SOCKET_IFNAME": "lo"}
        environment["HF_DATASETS_CACHE"] = str(folder / "cache")
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(next(ports))}
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
        launcher += ["--master_port", environment["MASTER_PORT"]]
        command = [sys.executable, *(launcher if torchrun else []), str(script), *SMALL, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    one, other = (load_file(path / "model.safetensors") for path in (one, other))
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() <= tolerance, name


STEPS = ["--max_steps", "4", "--save_steps", "1", "--gradient_accumulation_steps", "2", "--branches", "au"]


def test_two_processes_that_are_killed_end_as_if_they_had_not_been(job, tmp_path: Path) -> None:
    """With faces drawn and tower outputs stored by one of them, and micro-batches that share their negatives."""
    whole = job([*STEPS, "--output_dir", str(tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert whole.stdout.count("synthetic faces, ") == 1 and whole.stdout.count("{'loss'") == 2
    cut = [*STEPS, "--output_dir", str(tmp_path / "cut")]
    killed = job(cut, die_at=3)
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    last = tmp_path / "cut" / "checkpoint-3"
    (last / "rng_state_1.pth").write_bytes(b"half")  # all processes go back to the checkpoint before
    continued = job(cut)
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert "checkpoint-3 is passed over: rng_state_1.pth has 4 bytes" in continued.stderr
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_streamed_run_continues_where_it_was(job, tmp_path: Path) -> None:
    """Over the end of a pass, and by torchrun."""
    steps = ["--max_steps", "14", "--save_steps", "5", "--streaming", "--branches", "au"]
    whole, cut = ([*steps, "--output_dir", str(tmp_path / name)] for name in ("whole", "cut"))
    assert job(whole).returncode == 0
    assert job(cut, die_at=12).returncode != 0
    continued = job(cut, torchrun=True)
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", ["1", "2"])
def test_sharded_parameters_learn_the_same(job, tmp_path: Path, micro_batches: str) -> None:
    steps = ["--max_steps", "4", "--save_steps", "2", "--gradient_accumulation_steps", micro_batches]
    steps += ["--branches", "au"]
    for name, more in (("ddp", ""), ("fsdp", SHARDED)):
        done = job([*steps, "--output_dir", str(tmp_path / name)], more=more)
        assert done.returncode == 0, done.stderr[-3000:]
    for place in ("checkpoint-2", "checkpoint-4", "."):
        assert_same_weights(tmp_path / "ddp" / place, tmp_path / "fsdp" / place, tolerance=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--task", "full"], ["--task", "full", "--gradient_checkpointing"]], ids=str)
def test_parameters_without_a_gradient_stop_no_process(job, tmp_path: Path, arguments: list[str]) -> None:
    steps = ["--max_steps", "3", "--save_strategy", "no", "--branches", "au"]
    done = job([*steps, "--output_dir", str(tmp_path), *arguments])
    assert done.returncode == 0, done.stderr[-3000:]


def killed_and_continued(job, folder: Path, arguments: list[str]) -> None:
    """Two processes end with the same weights with and without an interruption; one of them writes and speaks."""
    steps = ["--max_steps", "4", "--save_steps", "1", *arguments]
    whole = job([*steps, "--output_dir", str(folder / "whole")])
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert whole.stdout.count("synthetic faces, ") == 1
    cut = [*steps, "--output_dir", str(folder / "cut")]
    assert "SIGKILL" in job(cut, die_at=3).stderr
    continued = job(cut)
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert_same_weights(folder / "whole", folder / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vl_fau", "me_graph_au", "hsemotion"])
def test_compared_systems_on_two_processes(job, tmp_path: Path, system: str) -> None:
    killed_and_continued(job, tmp_path, ["--model", system, "--label_set", "mfa"])
    if system == "vl_fau":  # its words are scored by all processes together
        assert "local_top5" in json.loads((tmp_path / "whole" / "metrics.json").read_text())


@pytest.mark.slow
def test_every_stage_of_exp_blip_on_two_processes(job, tmp_path: Path) -> None:
    model = ["--model", "exp_blip", "--label_set", "mfa"]
    killed_and_continued(job, tmp_path / "one", [*model, "--task", "pretrain"])
    source = ["--model_name_or_path", str(tmp_path / "one" / "whole")]
    killed_and_continued(job, tmp_path / "two", [*model, "--task", "caption", *source])
    source = ["--model_name_or_path", str(tmp_path / "two" / "whole")]
    killed_and_continued(job, tmp_path / "three", [*model, "--task", "full", *source])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--model", "vl_fau"], ["--model", "exp_blip", "--task", "pretrain"]], ids=str)
def test_compared_systems_learn_the_same_when_sharded(job, tmp_path: Path, arguments: list[str]) -> None:
    for name, more in (("ddp", ""), ("fsdp", SHARDED)):
        steps = ["--max_steps", "3", "--save_steps", "3", "--label_set", "mfa", *arguments]
        done = job([*steps, "--output_dir", str(tmp_path / name)], more=more)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(tmp_path / "ddp", tmp_path / "fsdp", tolerance=2e-5)
    if "exp_blip" not in arguments:
        return
    then = [*steps, "--task", "caption", "--model_name_or_path", str(tmp_path / "ddp")]
    for name, more in (("ddp2", ""), ("fsdp2", SHARDED)):
        done = job([*then, "--output_dir", str(tmp_path / name)], more=more)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(tmp_path / "ddp2", tmp_path / "fsdp2", tolerance=2e-4)  # the tower learns too, by Adam


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    kind = yaml.safe_load(path.read_text())["distributed_type"]
    assert config.distributed_type.value == kind and config.num_processes >= 8
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == 2
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
