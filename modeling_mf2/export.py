"""A model for image-only inference outside of this code: ONNX and its 8-bit form.

Each takes `pixel_values` and `landmarks` of any number of faces and gives `emotion_logits` and `au_logits`, those that
the model has. The file itself says which labels, thresholds and image size it is of, and of which weights.
"""

import contextlib
import json
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from configuration_mf2.facs import CANONICAL_FACE
from configuration_mf2.version import VERSION

from .onnx_files import (
    FACTS,
    FILE,
    INPUTS,
    INT8_FILE,
    NO_DIGEST,
    check_content,
    digest_of,
    need,
    output_names,
    read_facts,
    session,
    weights_mark,
)


_CLOSE = 1e-4
_MOST_IN_ONE_FILE = 1_900 * 2**20
"""Bytes; protobuf ends at 2 GiB, and what is larger gets a file of weights beside it."""


class ImageOnly(nn.Module):
    """Tensors in, a plain tuple of logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.mf2, self.classifiers = model.mf2, model.classifiers

    def forward(self, pixel_values: torch.Tensor, landmarks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        read = self.mf2(pixel_values, landmarks)
        return tuple(self.classifiers(read.emo_states, read.au_states, landmarks).outputs.values())


def facts_of(model: nn.Module, source: str | None = None) -> dict[str, Any]:
    """source: what a cache knows the file by."""
    config, vision = model.config, model.config.vision_config
    return {
        "mf2_version": VERSION,
        "action_units": list(config.action_units),
        "emotions": list(config.emotions),
        "au_thresholds": config.thresholds,
        "image_size": vision.image_size,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        **{name: getattr(vision, name) for name in ("alignment", "do_grayscale", "normalize_per_image")},
        "landmarks": "68 points (x, y) in pixels of pixel_values",
        "precision": "float32",
        "weights": weights_mark(model.classifiers.state_dict()),
        "source": source,
        "content": NO_DIGEST,
    }


def export_onnx(model: nn.Module, target: str | os.PathLike, *, source: str | None = None) -> Path:
    """target: a folder, or a file ending in `.onnx`. It is there only once its answers are the model's."""
    need("onnxscript"), need("onnx")
    model, target = _checked(model), _file(target, FILE)
    with _quiet_exporters(), _program(model) as program:
        names = output_names(model.config)
        exported = torch.onnx.export(
            program, input_names=INPUTS, output_names=names, dynamo=True, optimize=True, verbose=False
        )
    facts = facts_of(model, source)
    for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
        value.shape[0] = "batch"
    exported.model.metadata_props[FACTS] = json.dumps(facts)
    with _scratch(target) as made:
        size = sum(tensor.nelement() * tensor.element_size() for tensor in program.state_dict.values())
        exported.save(made, external_data=size > _MOST_IN_ONE_FILE)
        check_equal(model, made)
        _write_digest(made)
        _move(made, target)
    return target


@torch.no_grad()
def check_equal(model: nn.Module, file: Path) -> float:
    """The largest difference of any logit from torch's, of one face and of five."""
    run, worst = session(file).run, 0.0
    names = output_names(model.config)
    with _evaluating(model):
        for faces in (1, 5):
            inputs = example_inputs(model, faces)
            answers = run(names, {name: value.cpu().numpy() for name, value in zip(INPUTS, inputs, strict=True)})
            for name, ours, theirs in zip(names, ImageOnly(model)(*inputs), answers, strict=True):
                difference = (ours.cpu() - torch.from_numpy(theirs)).abs().max().item()
                if not difference <= _CLOSE * max(1.0, ours.abs().max().item()):
                    raise RuntimeError(
                        f"{name}: the exported model differs from torch by {difference:.2g} for {faces} faces, "
                        f"expected at most {_CLOSE}; nothing was written. Use the model in torch, and report this "
                        "with the versions of torch and onnxruntime"
                    )
                worst = max(worst, difference)
    return worst


def quantize_onnx(source: str | os.PathLike, target: str | os.PathLike | None = None) -> Path:
    """Weights of all matrix products in 8 bits, a scale for each of their columns; activations are rounded as they
    come. The classifiers stay as they are: they cost nothing, and what they add up would be rounded last.

    Seven of the eight bits are used: without them sums overflow on processors that lack 8-bit dot products.
    """
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    source = Path(source)
    target = _file(source.parent if target is None else target, INT8_FILE)
    with _scratch(target) as made, _quiet_exporters():
        facts = read_facts(session(source))
        check_content(source, facts)
        facts |= {"precision": "int8", "content": NO_DIGEST}
        content = onnx.load(os.fspath(source))
        del content.graph.value_info[:]  # shapes that the quantiser's rewriting would contradict
        kept = [node.name for node in content.graph.node if any("classifiers." in name for name in node.input)]
        weights = sum(len(tensor.raw_data) for tensor in content.graph.initializer)
        quantization.quantize_dynamic(
            content,
            made,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=kept,
            use_external_data_format=weights > _MOST_IN_ONE_FILE,
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
        smaller = onnx.load(os.fspath(made), load_external_data=False)
        onnx.helper.set_model_props(smaller, {FACTS: json.dumps(facts)})
        onnx.save(smaller, os.fspath(made))
        session(made)  # a file that does not load is not written
        _write_digest(made)
        _move(made, target)
    return target


def _checked(model: nn.Module) -> nn.Module:
    if hasattr(model, "get_base_model"):  # peft's wrapper: its layers stand inside the model, and are exported
        model = model.get_base_model()
    if not hasattr(model, "mf2") or not hasattr(model, "classifiers"):
        raise TypeError(
            f"model: got {type(model).__name__}, expected MF2ForFaceAnalysis, MF2ForPreTraining or "
            "MF2ForImageClassification (or one of them with an adapter)"
        )
    if model.dtype != torch.float32:
        raise ValueError(f"model: got weights of {model.dtype}, expected torch.float32; load it with dtype='float32'")
    return model


def _file(target: str | os.PathLike, name: str) -> Path:
    target = Path(target)
    if target.is_dir() or not target.suffix:
        target = target / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def example_inputs(model: nn.Module, faces: int) -> tuple[torch.Tensor, torch.Tensor]:
    size, device = model.config.vision_config.image_size, model.device
    draw = torch.Generator().manual_seed(0)
    landmarks = torch.tensor(CANONICAL_FACE) * size + torch.randn(faces, 68, 2, generator=draw)
    return torch.randn(faces, 3, size, size, generator=draw).to(device), landmarks.to(device)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in was_training.items():
            module.training = mode


@contextlib.contextmanager
def _program(model: nn.Module) -> Iterator[torch.export.ExportedProgram]:
    batch = torch.export.Dim.DYNAMIC
    with _evaluating(model), torch.no_grad():
        example = example_inputs(model, 2)  # of one, nothing could tell that there may be more
        yield torch.export.export(ImageOnly(model).eval(), example, dynamic_shapes=({0: batch}, {0: batch}))


@contextlib.contextmanager
def _quiet_exporters() -> Iterator[None]:
    """They tell of steps of theirs that a user can do nothing about."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "root")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_digest(file: Path) -> None:
    digest = digest_of(file, NO_DIGEST)
    with open(file, "r+b") as content, mmap.mmap(content.fileno(), 0) as mapped:
        place = mapped.find(NO_DIGEST.encode())
        mapped[place : place + len(digest)] = digest.encode()


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Yields a path of the target's name in a new folder beside it. One export writes into a folder at a time, so that
    any other scratch folder there is of a process that was killed."""
    lock = FileLock(target.parent / ".export.lock")
    with lock:
        for leftover in target.parent.glob(".export-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
                yield Path(folder) / target.name
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock.lock_file)


def _move(made: Path, target: Path) -> None:
    """Weights beside the file first, so that a file that is there is whole."""
    for part in sorted(made.parent.iterdir(), key=lambda part: part == made):
        part.replace(target.parent / part.name)


__all__ = ["example_inputs", "export_onnx", "quantize_onnx"]
