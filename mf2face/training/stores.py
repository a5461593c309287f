"""Stores of frozen outputs: a vision tower's tokens, or the states that an adapter reads, computed once a run.

A store is a folder of safetensors shards and `store.json`: identity, checksums. Several processes share a build, each
on its own device; an interrupted build continues.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets.fingerprint import generate_fingerprint
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from configuration_mf2.json_files import read_json
from mf2face.data.examples import MF2Examples
from mf2face.files import check_room, checksum, disk_full, is_disk_full, locked, remove_leftovers, write_whole
from modeling_mf2.dfn.layer import DFNLayer
from modeling_mf2.dfn.states import compute_states, ports_of, towers_of
from modeling_mf2.losses import world_size
from modeling_mf2.vision import MF2VisionTower


MANIFEST, SHARED, _PLAN = "store.json", "shared.safetensors", "identity.json"
_REBUILD = "build the store anew (rebuild=True; train.py: --rebuild_store True)"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_INPUTS = ("pixel_values", "image_tokens", "landmarks")  # what the frozen part reads of an example
_EXACT = ("landmarks",)  # stored as they are, whatever the dtype
_FORMAT = 5
_IRRELEVANT_FIELDS = {
    *("au_thresholds", "au_class_weights", "loss_weights", "classification_target", "auto_map", "architectures"),
    *("problem_type", "dtype", "id2label", "label2id", "_name_or_path", "mf2_version", "transformers_version"),
}
_DAY = 24 * 3600
_SAVE_ROOM = "Give a folder on another disk, dtype='float16', fewer views, or go without a store"


@dataclass(frozen=True)
class StoreOptions:
    """How a store is built.

    dtype: of what is stored. precision: of the computation, by autocast unless it is float32. device: where it runs;
    None: where the model is. workers: processes that prepare images for this one.
    """

    dtype: str = "float16"
    precision: str = "float32"
    device: torch.device | str | None = None
    workers: int = 0
    batch_size: int = 64
    shard_rows: int = 256
    rebuild: bool = False

    def __post_init__(self) -> None:
        for name in ("dtype", "precision"):
            if getattr(self, name) not in _DTYPES:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {list(_DTYPES)}")


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
    return weights_digest(
        {
            name.removeprefix("base_model.model."): tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith(own) and not heads & set(name.split("."))
        }
    )


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def store_identity(
    model: nn.Module, count: int, views: int, data: str, processor: Any, options: StoreOptions
) -> dict[str, Any]:
    """Cache key; a mismatch raises StaleStoreError."""
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
        **{"read": read, "dtype": options.dtype, "precision": options.precision},
        **{"processor": _digest(processor), "data": data, "images": count, "views": views},
    }


@torch.no_grad()
def compute_tokens(tower: MF2VisionTower, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    training = tower.training
    tokens = tower.eval()(inputs["pixel_values"])
    tower.train(training)
    return {"image_tokens": tokens, "landmarks": inputs["landmarks"]}


def frozen_outputs(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], options: StoreOptions
) -> dict[str, torch.Tensor]:
    """What is stored of these images; `pathway.layer` names what is the same for all."""
    device = next(model.parameters()).device
    compute = compute_tokens if isinstance(model, MF2VisionTower) else compute_states
    with torch.autocast(device.type, _DTYPES[options.precision], enabled=options.precision != "float32"):
        states = compute(model, {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()})
    return _packed(states, _DTYPES[options.dtype])


def frozen_states(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    data: str,
    processor: Any = None,
    more_views: Sequence[Sequence[Mapping[str, Any]]] = (),
    named: bool = False,
    **options: Any,
) -> StateStore:
    """The store of these examples in `folder`, opened, or built where there is none.

    model: a vision tower, or a model whose ports an adapter reads. more_views: the same images, augmented otherwise.
    data: changes when the examples do, such as a dataset's fingerprint. processor: what prepared them, as JSON can hold
    it. named: `folder` holds several stores, each named by its identity. options: of `StoreOptions`. Processes that
    call it at the same time share the work.
    """
    views = [examples, *more_views]
    if any(len(view) != len(examples) for view in views) or not len(examples):
        raise ValueError(
            f"examples: got views of {[len(view) for view in views]} images, expected equally many, 1 or more"
        )
    options = StoreOptions(**options)
    identity = store_identity(model, len(examples), len(views), data, processor, options)
    folder = Path(folder)
    if named:
        _remove_old_builds(folder)
        folder /= _digest(identity)[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(_lock_file(folder)):
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise FileExistsError(f"{folder}: is there and is no store; give another folder, or remove it")
        if folder.exists():
            shutil.rmtree(_old(folder), ignore_errors=True)  # of a process that was killed
        build = _Build(folder, identity, options) if options.rebuild or not folder.exists() else None
    if options.rebuild and world_size() > 1:
        dist.barrier()  # all take part, before the first one finds it complete
    if build is not None:
        build.run(model.to(options.device or next(model.parameters()).device), views)
    return StateStore(folder, identity)


def load_or_store(model: nn.Module, views: Sequence[MF2Examples], root: str | Path, **options: Any) -> StateStore:
    """The store of these rows below `root`. views: the rows as they are, then augmented in fixed ways."""
    first, *others = views
    data = f"{generate_fingerprint(first.dataset)} landmarks={first.read.landmarks}"
    data += "".join(f" view={view.read.seed} {view.read.augment}" for view in others)
    processor = first.processor.image_processor.to_dict()
    return frozen_states(model, first, root, data=data, processor=processor, more_views=others, named=True, **options)


def _lock_file(folder: Path, part: str = "") -> Path:
    return folder.parent / f".{folder.name}{part}.lock"


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _remove_old_builds(root: Path) -> None:
    """Removes builds in which nothing was written for more than a day; a younger one may be continued."""
    for partial in root.glob("*.partial"):
        try:
            with locked(_lock_file(partial.with_suffix("")), BlockingIOError()):
                if time.time() - partial.stat().st_mtime > _DAY:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError:
            pass


class _Build:
    """The shards of a store that is being built, in a folder beside it. A process claims each shard by a lock, which
    the system releases if the process dies: processes share the work, and take over from those that were killed."""

    def __init__(self, folder: Path, identity: dict[str, Any], options: StoreOptions) -> None:
        self.folder, self.options = folder, options
        self.partial = folder.with_name(f"{folder.name}.partial")
        plan = _read_plan(self.partial)
        if plan is None or plan["identity"] != identity:  # begun for something else
            shutil.rmtree(self.partial, ignore_errors=True)
            plan = {"identity": identity, "shard_rows": options.shard_rows, "batch_size": options.batch_size}
            self.partial.mkdir(exist_ok=True)
            write_whole(self.partial / _PLAN, json.dumps(plan))
        self.plan, self.total = plan, identity["images"] * identity["views"]
        self.claimed: dict[int, contextlib.ExitStack] = {}

    def run(self, model: nn.Module, views: list) -> None:
        rows, first = _Rows(views), os.environ.get("LOCAL_RANK", "0") == "0"
        done = self.total - self._missing_rows()
        bar = tqdm(total=self.total, initial=done, desc="frozen states", unit="image", disable=not first)
        with bar, contextlib.ExitStack() as held:
            held.callback(lambda: [lock.close() for lock in self.claimed.values()])
            try:
                # What other processes are at is left to them; then it is waited for, and built where they died.
                for wait, workers in ((False, self.options.workers), (True, 0)):
                    self._compute(model, self._loader(rows, wait, workers), bar)
            except OSError as error:
                if is_disk_full(error):
                    raise self._stopped() from error
                raise
        with locked(_lock_file(self.folder)):
            if self.partial.is_dir() and not self._missing_rows():
                self._finish()

    def _loader(self, rows: "_Rows", wait: bool, workers: int) -> DataLoader:
        # A generator of its own: whether a store is built must not change the numbers that are drawn after it.
        own = torch.Generator()
        return DataLoader(
            rows, batch_sampler=self._batches(wait), num_workers=workers, collate_fn=_collate, generator=own
        )

    def _rows_of(self, number: int) -> range:
        size = self.plan["shard_rows"]
        return range(number * size, min((number + 1) * size, self.total))

    def _missing(self) -> list[int]:
        count = -(-self.total // self.plan["shard_rows"])
        return [number for number in range(count) if not (self.partial / shard_name(number)).is_file()]

    def _missing_rows(self) -> int:
        return sum(len(self._rows_of(number)) for number in self._missing())

    def _batches(self, wait: bool) -> Iterator[list[int]]:
        """The rows of the shards that this process claims."""
        busy = None if wait else BlockingIOError()
        for number in self._missing():
            if number in self.claimed:
                continue
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(_lock_file(self.folder, f".{number}"), busy))
                except BlockingIOError:
                    continue
                if (self.partial / shard_name(number)).is_file() or not self.partial.is_dir():
                    continue
                self.claimed[number] = stack.pop_all()
            rows, size = self._rows_of(number), self.plan["batch_size"]
            yield from (list(rows[start : start + size]) for start in range(0, len(rows), size))

    def _compute(self, model: nn.Module, loader: DataLoader, bar: tqdm) -> None:
        parts = []
        for rows, inputs in loader:
            parts.append(frozen_outputs(model, inputs, self.options))
            number = rows[0] // self.plan["shard_rows"]
            if rows[-1] == self._rows_of(number)[-1]:
                self._write(number, parts)
                self.claimed.pop(number).close()
                parts = []
                bar.update(max(0, self.total - self._missing_rows() - bar.n))

    def _write(self, number: int, parts: list[dict[str, torch.Tensor]]) -> None:
        own = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if "." not in name}
        size = sum(tensor.nbytes for tensor in own.values())
        check_room(self.partial, size * self._missing_rows() // len(self._rows_of(number)), _SAVE_ROOM)
        write_whole(self.partial / SHARED, save({name: tensor for name, tensor in parts[0].items() if "." in name}))
        write_whole(self.partial / shard_name(number), save(own))

    def _stopped(self) -> OSError:
        """At a full disk: whole shards are kept, unless there are none."""
        done = self.total - self._missing_rows()
        if not done:
            shutil.rmtree(self.partial, ignore_errors=True)
            return disk_full(self.folder.parent, _SAVE_ROOM)
        size = sum(path.stat().st_size for path in self.partial.iterdir())
        advice = f"{done} of {self.total} images are stored: make room, and the same command continues; or remove "
        return disk_full(self.folder.parent, f"{advice}{self.partial}", size * (self.total - done) // done)

    def _finish(self) -> None:
        remove_leftovers(self.partial)
        sums = {path.name: checksum(path) for path in sorted(self.partial.glob("*.safetensors"))}
        write_whole(self.partial / MANIFEST, json.dumps({**self.plan, "checksums": sums}, indent=1))
        old = _old(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.partial.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def _read_plan(partial: Path) -> dict[str, Any] | None:
    try:
        plan = read_json(partial / _PLAN)
        sizes = (plan["shard_rows"], plan["batch_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return plan if "identity" in plan and all(type(size) is int and size > 0 for size in sizes) else None


class _Rows(Dataset):
    """Row numbers of a store to (number, what the frozen part reads of the example)."""

    def __init__(self, views: list) -> None:
        self.views = views

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[int, dict[str, torch.Tensor]]]:
        images, found = len(self.views[0]), []
        for number, of_view in itertools.groupby(rows, lambda row: row // images):
            view, places = self.views[number], [row % images for row in of_view]
            at_once = getattr(view, "__getitems__", None)
            found += at_once(places) if at_once else [view[place] for place in places]
        kept = [{name: example[name] for name in _INPUTS if name in example} for example in found]
        return list(zip(rows, kept, strict=True))


def _collate(rows: list[tuple[int, dict[str, torch.Tensor]]]) -> tuple[list[int], dict[str, torch.Tensor]]:
    return [row for row, _ in rows], default_collate([inputs for _, inputs in rows])


def _packed(states: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    packed = {name: (t if name in _EXACT else t.to(dtype)).cpu().contiguous() for name, t in states.items()}
    for name, tensor in packed.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name}: got numbers that are not finite, or too large for {str(dtype).removeprefix('torch.')}; store "
                "them with dtype='float32', and look at the model's weights if that does not help"
            )
    return packed
