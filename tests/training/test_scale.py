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
from short_runs import DYING, ROOT, assert_same_weights, command, environment


CONFIGS = ROOT / "examples" / "accelerate"
SMALL = {"vision_name_or_path": "none", "label_set": "disfa", "warmup_steps": 2, "per_device_train_batch_size": 4}
SMALL |= {"eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 4, "save_steps": 1, "logging_steps": 2}

# Two processes, as torchrun makes them but from one import, unless torchrun started this. Each ends itself without
# warning in the middle of a step, where the environment says so. What follows training has tests of its own.
JOB = """
import traceback
from mf2face.training import run as journey
journey.draw_scores = journey.draw_curves = lambda *args: None
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
    scratch, ports = tmp_path_factory.mktemp("jobs"), itertools.count(29600 + os.getpid() % 3000)

    def run(folder: Path, *, die_at: int = -1, more: str = "", torchrun: bool = False, **options: object) -> object:
        """Runs train.py on two processes to its end, or, with `die_at`, until both are killed in that step."""
        script, port = scratch / "job.py", str(next(ports))
        script.write_text(DYING + JOB.format(more=more))
        variables = {"DIE_AT": str(die_at), "GLOO_SOCKET_IFNAME": "lo", "HF_DATASETS_CACHE": str(scratch / "cache")}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
        arguments = [*([*launcher, "--master_port", port] if torchrun else []), str(script)]
        arguments = [sys.executable, *arguments, *command(folder, **{**SMALL, **options})]
        done = subprocess.run(arguments, env=environment(**variables), capture_output=True, text=True)
        assert "SIGKILL" in done.stderr if die_at >= 0 else done.returncode == 0, done.stderr[-3000:]
        return done

    return run


def check_killed_and_continued(job, folder: Path, die_at: int = 3, damaged: str = "", **options: object) -> None:
    """Two processes end with the same weights with and without an interruption; one of them writes and speaks.

    damaged: a file of the newest checkpoint; all processes go back to the one before."""
    whole = job(folder / "whole", **options)
    assert (
        whole.stdout.count("synthetic faces, ") == 1
        and whole.stdout.count("{'loss'") == options.get("max_steps", 4) // 2
    )
    job(folder / "cut", die_at=die_at, **options)
    if damaged:
        (folder / "cut" / f"checkpoint-{die_at}" / damaged).write_bytes(b"half")
    continued = job(folder / "cut", torchrun="streaming" in options, **options)
    assert not damaged or f"checkpoint-{die_at} is passed over: {damaged} has 4 bytes" in continued.stderr
    assert_same_weights(folder / "whole", folder / "cut")


def check_sharded_equals_ddp(
    job, folder: Path, atol: float = 2e-5, places: tuple[str, ...] = (".",), **options
) -> None:
    for name, more in (("ddp", ""), ("fsdp", SHARDED)):
        job(folder / name, more=more, **options)
    for place in places:
        assert_same_weights(folder / "ddp" / place, folder / "fsdp" / place, atol=atol)


@pytest.mark.slow
def test_two_processes_that_are_killed_end_as_if_they_had_not_been(job, tmp_path: Path) -> None:
    """With faces drawn and tower outputs stored by one of them, and micro-batches that share their negatives."""
    options = {"gradient_accumulation_steps": 2, "branches": "au"}
    check_killed_and_continued(job, tmp_path, damaged="rng_state_1.pth", **options)


@pytest.mark.slow
def test_a_streamed_run_continues_where_it_was(job, tmp_path: Path) -> None:
    """Over the end of a pass, and by torchrun."""
    options = {"max_steps": 14, "save_steps": 5, "streaming": True, "branches": "au"}
    check_killed_and_continued(job, tmp_path, die_at=12, **options)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_sharded_parameters_learn_the_same(job, tmp_path: Path, micro_batches: int) -> None:
    options = {"save_steps": 2, "gradient_accumulation_steps": micro_batches, "branches": "au"}
    check_sharded_equals_ddp(job, tmp_path, places=("checkpoint-2", "checkpoint-4", "."), **options)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}], ids=str)
def test_parameters_without_a_gradient_stop_no_process(job, tmp_path: Path, more: dict) -> None:
    job(tmp_path, max_steps=3, save_strategy="no", branches="au", task="full", **more)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vl_fau", "me_graph_au", "hsemotion"])
def test_compared_systems_on_two_processes(job, tmp_path: Path, system: str) -> None:
    check_killed_and_continued(job, tmp_path, model=system, label_set="mfa")
    if system == "vl_fau":  # its words are scored by all processes together
        assert "local_top5" in json.loads((tmp_path / "whole" / "metrics.json").read_text())


@pytest.mark.slow
def test_every_stage_of_exp_blip_on_two_processes(job, tmp_path: Path) -> None:
    source = None
    for task in ("pretrain", "caption", "full"):
        options = {"model": "exp_blip", "task": task, "label_set": "mfa", "model_name_or_path": source}
        check_killed_and_continued(job, tmp_path / task, **options)
        source = tmp_path / task / "whole"


@pytest.mark.slow
def test_compared_systems_learn_the_same_when_sharded(job, tmp_path: Path) -> None:
    options = {"max_steps": 3, "save_steps": 3, "label_set": "mfa"}
    check_sharded_equals_ddp(job, tmp_path / "vl_fau", model="vl_fau", **options)
    options["model"] = "exp_blip"
    check_sharded_equals_ddp(job, tmp_path / "one", task="pretrain", **options)
    then = {"task": "caption", "model_name_or_path": tmp_path / "one" / "ddp"}
    check_sharded_equals_ddp(job, tmp_path / "two", 2e-4, **options, **then)  # the tower learns too, by Adam


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    kind = yaml.safe_load(path.read_text())["distributed_type"]
    assert config.distributed_type.value == kind and config.num_processes >= 8
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == 2
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
