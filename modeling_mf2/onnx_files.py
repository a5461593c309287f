"""Exported models as files: what they say of themselves, whether they are whole, and a session that runs them.

Without torch, which `export.py` needs to make them.
"""

import hashlib
import importlib
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.json_files import parse_json


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported, by whomever

INPUTS = ("pixel_values", "landmarks")
FILE = "model.onnx"
INT8_FILE = "model_int8.onnx"
FACTS = "mf2"
NO_DIGEST = "0" * 64
"""Stands in a file where its digest will."""


class MissingPackageError(ImportError):
    pass


def need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{package.split('.')[0]} is not installed ({error}), which exported models need: "
            'pip install -e ".[export]"'
        ) from error


def output_names(config: Any) -> list[str]:
    has_units = bool(config.action_units) and (config.use_au_branch or config.use_emo_branch)
    more = {"au_side_logits": "sides", "au_intensities": "intensities"}  # which older checkpoints have not
    names = [name for name, field in more.items() if has_units and getattr(config, field, False)]
    return ["emotion_logits"] * bool(config.emotions) + ["au_logits"] * has_units + names


def weights_mark(classifiers: Mapping[str, Any]) -> str:
    """Of the classifiers, which every training changes: tensors or arrays by their names without `classifiers.`."""
    mark = hashlib.sha256()
    for name in sorted(classifiers):
        mark.update(name.encode())
        weights = classifiers[name]
        weights = weights if isinstance(weights, np.ndarray) else weights.detach().cpu().float().numpy()
        mark.update(weights.astype(np.float32).tobytes())
    return mark.hexdigest()


def differences(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """What a file was made for, where it is something else than expected; empty if nothing is."""
    wrong = [name for name, value in expected.items() if facts.get(name) != value]
    return "; ".join(f"{name}: got {facts.get(name)}, expected {expected[name]}" for name in wrong)


def read_facts(run: Any) -> dict[str, Any]:
    """Of a session."""
    text = run.get_modelmeta().custom_metadata_map.get(FACTS)
    if text is None:
        raise ValueError("the ONNX file does not say what it is of, expected one of export_onnx; export it again")
    try:
        facts = parse_json(text, FACTS)
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("mf2_version"), str):
        raise ValueError(f"the ONNX file has the facts {text[:80]!r}, expected those of export_onnx; export it again")
    return facts


def session(file: str | os.PathLike, threads: int | None = None) -> Any:
    """threads: as many as torch uses unless given; where it is not imported, OMP_NUM_THREADS, or a thread a core."""
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    if threads is None and (torch := sys.modules.get("torch")):
        threads = torch.get_num_threads()
    environment = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = threads or (int(environment) if environment.isdecimal() else 0)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file}: there is no such file, expected an exported model")
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common one
        raise ValueError(f"{file}: onnxruntime cannot read it ({error}); export it again") from error


def check_content(file: Path, facts: Mapping[str, Any]) -> None:
    """Raises if a bit of the file, or of its weights beside it, is not as it was written."""
    digest = facts.get("content")
    if not isinstance(digest, str) or digest == NO_DIGEST or digest_of(file, digest) != digest:
        raise ValueError(
            f"{file} is damaged: its content does not have the sha256 {digest!r} that it names; export it again"
        )


def digest_of(file: Path, written: str) -> str | None:
    """sha256 of the file and its external weights, with zeros in the place of the digest that is written in it."""
    digest = hashlib.sha256()
    with open(file, "rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        place = mapped.find(written.encode())
        if place < 0:
            return None
        for start in range(0, place, 2**20):
            digest.update(mapped[start : min(start + 2**20, place)])
        digest.update(NO_DIGEST.encode())
        for start in range(place + len(written), len(mapped), 2**20):
            digest.update(mapped[start : start + 2**20])
    weights = Path(f"{file}.data")
    if weights.is_file():
        with open(weights, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
