"""Several micro-batches, on one process or two, are one large batch: every loss and every gradient."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import DETAILS
from strangers import ROOT, run

from configuration_mf2.configuration_mf2 import LOSSES, MF2Config
from mf2face.training.grad_cache import MicroBatch, micro_batches
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining


TEXTS = (("input_ids", "attention_mask"), ("key_au_input_ids", "key_au_attention_mask"))
TEXTS += (("au_input_ids", "au_attention_mask"),)
TOLERANCE = 1e-9  # in float64


def build(config: MF2Config, shaken) -> MF2ForPreTraining:
    return shaken(MF2ForPreTraining(config)).double().eval()


def uneven_batch(make_batch, config: MF2Config, rows: int = 8) -> dict[str, torch.Tensor]:
    """What is known stands mostly in the first rows; the first and the last caption are equal."""
    batch = make_batch(config, rows)
    for name in ("pixel_values", "landmarks"):
        batch[name] = batch[name].double()
    batch["attention_mask"][5] = 0
    batch["key_au_attention_mask"][[2, 3, 4]] = 0
    batch["au_attention_mask"][[0, 3], [1, 2]] = 0
    batch["au_attention_mask"][6] = 0
    batch["input_ids"][7], batch["attention_mask"][7] = batch["input_ids"][0], batch["attention_mask"][0]
    batch["au_labels"][4:, :2] = -1
    batch["emotion_labels"][[1, 6, 7]] = -1
    if config.sides:
        batch["side_labels"][3:] = -1
    if config.intensities:
        batch["intensity_labels"] = batch["intensity_labels"].double()
    return batch


def cut(batch: dict[str, torch.Tensor], sizes: list[int]) -> list[dict[str, torch.Tensor]]:
    """Micro-batches, each padded to its own longest captions, as the collator makes them."""
    parts = [
        dict(zip(batch, rows, strict=True)) for rows in zip(*(t.split(sizes) for t in batch.values()), strict=True)
    ]
    for part in parts:
        for ids, mask in TEXTS:
            length = max(int(part[mask].flatten(0, -2).sum(-1).max()), 2)
            part[ids], part[mask] = part[ids][..., :length].clone(), part[mask][..., :length].clone()
    return parts


def step(model, batches: list[dict[str, torch.Tensor]], first_pass: bool = True) -> dict[str, torch.Tensor]:
    """The Trainer's step: the mean of the micro-batches' losses. -> the parts' means; gradients are in the model."""
    sums = {}
    parts = micro_batches(model, batches, first_pass) if len(batches) > 1 else batches
    for part in parts:
        with model.no_sync() if part is not parts[-1] and hasattr(model, "no_sync") else nullcontext():
            if isinstance(part, MicroBatch):
                with part.entered():
                    read = model(**part.inputs)
            else:
                read = model(**part)
            (read.loss / len(batches)).backward()
        for name in LOSSES:
            if read.get(name) is not None:
                sums[name] = sums.get(name, 0) + read[name].detach() / len(batches)
    return sums


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole(model, batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model.zero_grad()
    read = model(**batch)
    read.loss.backward()
    return {name: read[name].detach() for name in LOSSES if read.get(name) is not None}, gradients(model)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= TOLERANCE * max(value.abs().max().item(), 1e-3), (name, error)


def check_equals_whole(model, batch: dict[str, torch.Tensor], parts: list[dict], **step_options) -> set[str]:
    expected, grads = whole(model, batch)
    model.zero_grad()
    assert_equal(step(model, parts, **step_options), expected)
    assert_equal(gradients(model), grads)
    return set(expected)


@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [3, 3, 2], [7, 1]], ids=str)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained tower"])
def test_micro_batches_equal_one_batch(make_config, make_batch, shaken, sizes, frozen):
    model = build(make_config(vision={"frozen": frozen}, au_class_weights=[1.0, 2.0, 0.5], **DETAILS), shaken)
    batch = uneven_batch(make_batch, model.config)
    assert check_equals_whole(model, batch, cut(batch, sizes)) == set(LOSSES)


@pytest.mark.parametrize("fields", [{"use_au_branch": False}, {"use_emo_branch": False}, {"emotions": []}], ids=str)
@pytest.mark.parametrize("missing", [(), ("input_ids", "attention_mask"), ("au_labels",), ("landmarks",)], ids=str)
def test_with_less_model_or_less_data(make_config, make_batch, shaken, fields, missing):
    model = build(make_config(**fields), shaken)
    batch = uneven_batch(make_batch, model.config)
    whole_batch, *parts = (
        {name: tensor for name, tensor in part.items() if name not in missing} for part in (batch, *cut(batch, [4, 4]))
    )
    check_equals_whole(model, whole_batch, parts)


def test_classification_alone(make_config, make_batch, shaken):
    model = shaken(MF2ForFaceAnalysis(make_config())).double().train()
    batch = uneven_batch(make_batch, model.config)
    assert check_equals_whole(model, batch, cut(batch, [6, 2]), first_pass=False) == {"au", "emotion"}


def test_dropout_drops_the_same_in_both_passes(make_config, make_batch, shaken):
    dropping = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    model = build(make_config(qformer=dropping), shaken).train()
    seen = {}
    for branch in (model.mf2.emo_vl, model.mf2.au_vl):
        for layer in (branch.heads.image_projection, branch.heads.text_projection):
            layer.register_forward_hook(lambda layer, _, output: seen.setdefault(layer, []).append(output))
    step(model, cut(uneven_batch(make_batch, model.config), [4, 4]))
    for outputs in seen.values():
        first, second, first_again, second_again = outputs
        assert torch.equal(first, first_again) and torch.equal(second, second_again)


def test_the_tower_looks_once(make_config, make_batch, shaken):
    model = build(make_config(), shaken)
    rows = []
    model.mf2.vision.register_forward_hook(lambda module, images, out: rows.append(len(out)))
    step(model, cut(uneven_batch(make_batch, model.config), [4, 4]))
    assert rows == [4, 4]


def _process(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    given = torch.load(f"{folder}/given.pt")
    model = MF2ForPreTraining(MF2Config.from_dict(given["config"])).double().eval()
    model.load_state_dict(given["state"])
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    results = []
    for parts in given["steps"]:
        mine = parts[: len(parts) // 2] if rank == 0 else parts[len(parts) // 2 :]
        model.zero_grad()
        results.append({"losses": step(parallel, mine), "gradients": gradients(model)})
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# Not forked from this process, whose autograd runs already.
BOTH = """
import sys, torch
from test_grad_cache import _process
torch.multiprocessing.start_processes(_process, args=(sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_two_processes_with_one_or_two_micro_batches_equal_one_batch(make_config, make_batch, shaken, tmp_path):
    model = build(make_config(au_class_weights=[1.0, 2.0, 0.5], **DETAILS), shaken)
    batch = uneven_batch(make_batch, model.config)
    steps = [cut(batch, [4, 4]), cut(batch, [2, 2, 2, 2])]
    given = {"config": model.config.to_dict(), "state": model.state_dict(), "steps": steps}
    torch.save(given, tmp_path / "given.pt")
    run(BOTH, tmp_path, cwd=ROOT, PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent))))
    expected, grads = whole(model, batch)
    for halves in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        assert_equal({name: sum(half["losses"][name] for half in halves) / 2 for name in expected}, expected)
        for half in halves:
            assert_equal(half["gradients"], grads)
