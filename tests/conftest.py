import logging
import os
from collections.abc import Mapping


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import pytest
import torch

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import CANONICAL_FACE


torch.set_num_threads(1)

IMAGE = ("pixel_values", "landmarks")
LABELS = ("au_labels", "emotion_labels")
DETAILS = {"sides": True, "intensities": True, "shape_weight": 2}
"""Of a config, whose model then learns every loss"""

TOWERS = {
    "conv": {"backbone": "conv", "backbone_kwargs": {"num_blocks": 1}, "num_prefix_tokens": 0},
    "vit": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": {"embed_dim": 32, "depth": 1, "num_heads": 2},
        "num_prefix_tokens": 1,
    },
}

QFORMER = {
    **{"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 24},
    **{"projection_dim": 8, "num_query_tokens": 3, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 3},
}


def tiny_config(tower: str = "conv", vision: dict | None = None, qformer: dict | None = None, **fields) -> MF2Config:
    """Small enough that a forward pass takes milliseconds: 64 px images, a 4 x 4 grid, three AUs, three emotions."""
    qformer = {**QFORMER, **(qformer or {})}
    defaults = {
        "vision_config": {"image_size": 64, "hidden_size": 32, **TOWERS[tower], **(vision or {})},
        "emo_config": qformer,
        "au_config": {**qformer, "num_query_tokens": 2},
        "action_units": ["AU1", "AU6", "AU25"],
        "emotions": ["Neutral", "Happiness", "Other"],
        "region_grid": 2,
        "initializer_range": 0.2,
        **{"emotion_max_length": 20, "au_max_length": 24},
    }
    return MF2Config(**{**defaults, **fields})


def shake(model: torch.nn.Module, scale: float = 0.1, seed: int = 7) -> torch.nn.Module:
    """Moves every parameter, so that biases, norms and zero-initialised outputs cannot hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("temperature"):
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Bit-equal tensors under every expected name."""
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **{"rtol": 1e-3, "atol": 1e-5, **tolerance}, msg=name)


def pick(batch: Mapping[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in names}


def rows_of(batch: Mapping[str, torch.Tensor], rows: slice | list[int]) -> dict[str, torch.Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


def captions(shape: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`[CLS]` words `[SEP]` and padding, of lengths that differ."""
    ids = torch.randint(6, 40, shape, generator=generator)
    lengths = torch.randint(3, shape[-1] + 1, shape[:-1], generator=generator)[..., None]
    places = torch.arange(shape[-1])
    mask = (places < lengths).long()
    ids = torch.where(places == lengths - 1, 3, ids) * mask
    ids[..., 0] = 2
    return ids, mask


def tiny_batch(config: MF2Config, rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Everything that `MF2ForPreTraining` takes; one AU label and one emotion label are unknown."""
    generator = torch.Generator().manual_seed(seed)
    size, units = config.vision_config.image_size, len(config.action_units)
    face = torch.tensor(CANONICAL_FACE) * size
    batch = {
        "pixel_values": torch.randn(rows, 3, size, size, generator=generator),
        "landmarks": face + torch.randn(rows, 68, 2, generator=generator),
        "au_labels": torch.randint(0, 2, (rows, units), generator=generator),
        "emotion_labels": torch.randint(0, max(len(config.emotions), 1), (rows,), generator=generator),
    }
    batch["input_ids"], batch["attention_mask"] = captions((rows, 7), generator)
    batch["au_input_ids"], batch["au_attention_mask"] = captions((rows, units, 5), generator)
    batch["key_au_input_ids"], batch["key_au_attention_mask"] = captions((rows, 8), generator)
    if getattr(config, "sides", False):
        batch["side_labels"] = torch.randint(-1, 2, (rows, units, 2), generator=generator)
    if getattr(config, "intensities", False):
        batch["intensity_labels"] = torch.randint(-1, 6, (rows, units), generator=generator).float()
    batch["au_labels"][0, :1] = -1
    batch["emotion_labels"][-1] = -1
    return batch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def transformers_log(caplog, monkeypatch):
    """What transformers logs, also what it warns about once a process."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLoggerClass().warning_once.cache_clear()
    return caplog


@pytest.fixture
def training_alone(monkeypatch):
    """A run trains, scores its test images and saves; what else it measures and draws has tests of its own."""
    for name in ("draw_scores", "draw_curves", "probe_scores", "baseline_scores", "language_scores"):
        monkeypatch.setattr(f"mf2face.training.run.{name}", lambda *_, **__: {})


@pytest.fixture
def make_config():
    return tiny_config


@pytest.fixture
def make_batch():
    return tiny_batch


@pytest.fixture
def shaken():
    return shake
