"""Stores of frozen outputs: a vision tower's tokens, or the states that an adapter reads, computed once a run.

A store is a folder of safetensors shards and `store.json`: identity, checksums. An interrupted build continues.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets.fingerprint import generate_fingerprint
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from configuration_mf2.json_files import read_json
from mf2face.data.examples import MF2Examples
from mf2face.files import check_room, checksum, is_disk_full, locked, write_whole
from modeling_mf2.dfn.layer import DFNLayer
from modeling_mf2.dfn.states import compute_states, ports_of, towers_of
from modeling_mf2.vision import MF2VisionTower


MANIFEST, SHARED, _PLAN = "store.json", "shared.safetensors", "identity.json"
_REBUILD = "build the store anew (rebuild=True; train.py: --rebuild_store True)"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_INPUTS = ("pixel_values", "image_tokens", "landmarks")  # what the frozen part reads of an example
_EXACT = ("landmarks",)  # stored as they are, whatever the dtype
_FORMAT = 4
_IRRELEVANT_FIELDS = {
    *("au_thresholds", "au_class_weights", "loss_weights", "classification_target", "auto_map", "architectures"),
    *("problem_type", "dtype", "id2label", "label2id", "_name_or_path", "mf2_version", "transformers_version"),
}
_DAY = 24 * 3600


class StaleStoreError(ValueError):
    """A store holds the outputs of another model, adapter, processor or dataset."""


class StateStore:
    """A complete store, memory-mapped. Row `view * images + index` is that view of that image."""

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder, self._verified = Path(folder), set()
        try:
            self.manifest = read_json(self.folder / MANIFEST)
        except (OSError, ValueError) as error:
            raise self._damaged(MANIFEST, f"no store of frozen outputs, or a damaged one ({error})") from error
        saved = self._field(self.manifest, "identity", dict)
        stale = {name: value for name, value in (identity or {}).items() if saved.get(name) != value}
        if stale:
            changes = "; ".join(f"{name}: stored {saved.get(name)}, now {value}" for name, value in stale.items())
            raise StaleStoreError(f"{self.folder}: another {changes}. Give another folder, or {_REBUILD}")
        self.images, self.views = (self._field(saved, f"identity.{name}", int) for name in ("images", "views"))
        self.shard_rows = self._field(self.manifest, "shard_rows", int)
        self.checksums = self._field(self.manifest, "checksums", dict)
        self._verify(SHARED)
        self.shared = self._load(SHARED)
        count = -(-self.images * self.views // self.shard_rows)
        self.shards = [self._load(shard_name(number)) for number in range(count)]

    def _damaged(self, name: str, reason: str) -> OSError:
        return OSError(f"{self.folder / name}: {reason}; {_REBUILD}")

    def _field(self, fields: Any, name: str, kind: type) -> Any:
        value = fields.get(name.rpartition(".")[2]) if isinstance(fields, dict) else None
        if type(value) is not kind or (kind is int and not 0 < value < 2**63):
            expected = {dict: "an object", int: "a whole number from 1 to 2**63 - 1"}[kind]
            raise self._damaged(MANIFEST, f"{name}: got {value!r}, expected {expected}")
        return value

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise self._damaged(name, f"missing, damaged or cut short ({error})") from error

    def _verify(self, name: str) -> None:
        """Compares a file with its checksum before its first use."""
        if name in self._verified:
            return
        try:
            got, expected = checksum(self.folder / name), self.checksums.get(name)
        except OSError as error:
            raise self._damaged(name, f"missing or unreadable ({error})") from error
        if got != expected:
            raise self._damaged(name, f"checksum: got {got}, expected {expected}")
        self._verified.add(name)

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in self.batch([index]).items()}

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def batch(self, rows: Sequence[int] | torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.images * self.views:
            raise IndexError(f"rows: got {rows.tolist()}, expected 0 to {self.images * self.views - 1}")
        numbers = rows // self.shard_rows
        states = {name: torch.empty(len(rows), *t.shape[1:], dtype=dtype) for name, t in self.shards[0].items()}
        for number in numbers.unique().tolist():
            here = (numbers == number).nonzero()[:, 0]
            inside = rows[here] - number * self.shard_rows
            self._verify(shard_name(number))
            for name, tensor in self.shards[number].items():
                states[name][here] = tensor[inside].to(dtype)
        return states | {name: tensor.to(dtype) for name, tensor in self.shared.items()}


class StoredExamples(Dataset):
    """Stored rows with their labels, for a DataLoader or Trainer with `collate_fn=collate_stored`. Of several views one
    is drawn each time."""

    def __init__(self, store: StateStore, labels: Mapping[str, torch.Tensor]) -> None:
        wrong = {name: len(tensor) for name, tensor in labels.items() if len(tensor) != len(store)}
        if wrong:
            raise ValueError(f"labels: got {wrong} rows, expected {len(store)}, one for each stored image")
        self.store, self.labels = store, dict(labels)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        indices = torch.as_tensor(indices)
        views = torch.randint(self.store.views, indices.shape) if self.store.views > 1 else torch.zeros_like(indices)
        labels = {name: tensor[indices] for name, tensor in self.labels.items()}
        return {**labels, "states": self.store.batch(views * len(self.store) + indices)}


def collate_stored(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def backbone_fingerprint(model: nn.Module) -> str:
    """Digest of the weights that the output depends on: not of adapters, and not of the heads trained beside them."""
    adapters = (DFNLayer, AuxiliaryTrainingWrapper)
    own = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, adapters) or getattr(module, "is_dfn_port", False)
    )
    heads = {*getattr(model, "adapter_heads", {}).get("all", [])}
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name.startswith(own) or heads & set(name.split(".")):
            continue
        name = name.removeprefix("base_model.model.")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def store_identity(model: nn.Module, count: int, views: int, data: str, processor: Any, dtype: str) -> dict[str, Any]:
    """Cache key; a mismatch raises StaleStoreError."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {list(_DTYPES)}")
    read: Any = "image_tokens"
    if not isinstance(model, MF2VisionTower):
        read = {
            branch: {name: {"layers": t.layers, "pooling": t.pooling} for name, t in towers_of(port).items()}
            for branch, port in ports_of(model).items()
        }
    fields = model.config.to_dict()  # what the weights do not tell, such as the number of attention heads
    config = _digest({name: value for name, value in fields.items() if name not in _IRRELEVANT_FIELDS})
    return {
        **{"format": _FORMAT, "backbone": backbone_fingerprint(model), "config": config},
        **{"read": read, "dtype": dtype, "processor": _digest(processor), "data": data},
        **{"images": count, "views": views},
    }


@torch.no_grad()
def compute_tokens(tower: MF2VisionTower, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    training = tower.training
    tokens = tower.eval()(inputs["pixel_values"])
    tower.train(training)
    return {"image_tokens": tokens, "landmarks": inputs["landmarks"]}


def frozen_states(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    data: str,
    processor: Any = None,
    more_views: Sequence[Sequence[Mapping[str, Any]]] = (),
    dtype: str = "float16",
    batch_size: int = 64,
    shard_rows: int = 256,
    rebuild: bool = False,
    named: bool = False,
) -> StateStore:
    """The store of these examples in `folder`, opened, or built where there is none.

    model: a vision tower, or a model whose ports an adapter reads. more_views: the same images, augmented otherwise.
    data: changes when the examples do, such as a dataset's fingerprint. processor: what prepared them, as JSON can hold
    it. named: `folder` holds several stores, each named by its identity. Of several processes one builds, the others
    wait.
    """
    views = [examples, *more_views]
    if any(len(view) != len(examples) for view in views) or not len(examples):
        raise ValueError(
            f"examples: got views of {[len(view) for view in views]} images, expected equally many, 1 or more"
        )
    identity = store_identity(model, len(examples), len(views), data, processor, dtype)
    folder = Path(folder)
    if named:
        _remove_old_builds(folder)
        folder /= _digest(identity)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f"{folder.name}.{ending}") for ending in ("partial", "old"))
    with locked(_lock_file(folder)):
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise FileExistsError(f"{folder}: is there and is no store; give another folder, or remove it")
        if rebuild or not folder.exists():
            _build(partial, model, views, identity, batch_size, shard_rows)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return StateStore(folder, identity)


def load_or_store(
    model: nn.Module,
    views: Sequence[MF2Examples],
    root: str | Path,
    dtype: str = "float16",
    rebuild: bool = False,
    batch_size: int = 64,
) -> StateStore:
    """The store of these rows below `root`. views: the rows as they are, then augmented in fixed ways."""
    first, *others = views
    data = f"{generate_fingerprint(first.dataset)} landmarks={first.read.landmarks}"
    data += "".join(f" view={view.read.seed} {view.read.augment}" for view in others)
    source = {"data": data, "processor": first.processor.image_processor.to_dict(), "more_views": others}
    how = {"dtype": dtype, "rebuild": rebuild, "batch_size": batch_size}
    return frozen_states(model, first, root, named=True, **source, **how)


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _remove_old_builds(root: Path) -> None:
    """Removes builds that were killed more than a day ago; a younger one may be continued."""
    for partial in root.glob("*.partial"):
        try:
            with locked(_lock_file(partial.with_suffix("")), BlockingIOError()):
                if time.time() - partial.stat().st_mtime > _DAY:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError:
            pass


def _build(
    partial: Path, model: nn.Module, views: list, identity: dict[str, Any], batch_size: int, shard_rows: int
) -> None:
    plan = {"identity": identity, "shard_rows": shard_rows, "batch_size": batch_size}
    if partial.exists() and _read_plan(partial) != plan:
        shutil.rmtree(partial)  # begun for something else
    partial.mkdir(exist_ok=True)
    compute = compute_tokens if isinstance(model, MF2VisionTower) else compute_states
    device, dtype = next(model.parameters()).device, _DTYPES[identity["dtype"]]
    total = identity["images"] * identity["views"]
    try:
        write_whole(partial / _PLAN, json.dumps(plan))
        progress = tqdm(total=total, desc="frozen states", unit="image")
        for number, start in enumerate(range(0, total, shard_rows)):
            stop = min(start + shard_rows, total)
            if not (partial / shard_name(number)).is_file() or not (partial / SHARED).is_file():
                parts = []
                for first in range(start, stop, batch_size):
                    inputs = _fetch(views, range(first, min(first + batch_size, stop)))
                    parts.append(_packed(compute(model, {n: t.to(device) for n, t in inputs.items()}), dtype))
                _write_shard(partial, number, parts, (total - start) / (stop - start))
            progress.update(stop - start)
        progress.close()
        sums = {path.name: checksum(path) for path in sorted(partial.glob("*.safetensors"))}
        write_whole(partial / MANIFEST, json.dumps({**plan, "checksums": sums}, indent=1))
    except OSError as error:
        if is_disk_full(error):
            shutil.rmtree(partial, ignore_errors=True)  # the disk is left as it was
        raise


def _read_plan(partial: Path) -> Any:
    try:
        return read_json(partial / _PLAN)
    except (OSError, ValueError):
        return None


def _fetch(views: list, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    examples = [views[row // len(views[0])][row % len(views[0])] for row in rows]
    return default_collate([{name: example[name] for name in _INPUTS if name in example} for example in examples])


def _packed(states: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    packed = {name: (t if name in _EXACT else t.to(dtype)).cpu().contiguous() for name, t in states.items()}
    for name, tensor in packed.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name}: got numbers that are not finite, or too large for {str(dtype).removeprefix('torch.')}; store "
                "them with dtype='float32', and look at the model's weights if that does not help"
            )
    return packed


def _write_shard(partial: Path, number: int, parts: list[dict[str, torch.Tensor]], shards_left: float) -> None:
    own = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if "." not in name}
    needed = int(shards_left * sum(tensor.nbytes for tensor in own.values()))
    check_room(partial, needed, "Give a folder on another disk, dtype='float16', fewer views, or go without a store")
    write_whole(partial / SHARED, save({name: tensor for name, tensor in parts[0].items() if "." in name}))
    write_whole(partial / shard_name(number), save(own))
