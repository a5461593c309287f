"""Reading a store of frozen states: safetensors shards, memory-mapped, and `store.json`, which says what of."""

import errno
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from configuration_mf2.json_files import read_json

from .layer import DFNLayer


MANIFEST, SHARED = "store.json", "shared.safetensors"
_REBUILD = "build the store anew (rebuild=True; train.py: --rebuild_store True)"


class StaleStoreError(ValueError):
    """A store holds the states of another model, adapter, processor or dataset."""


class StateStore:
    """A whole store, memory-mapped. Row `view * images + index` is that view of that image."""

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder / MANIFEST)
        saved = self._field(self.manifest, "identity", dict)
        if identity is not None:
            self._check(identity)
        self.images, self.views = (self._field(saved, f"identity.{name}", int) for name in ("images", "views"))
        self.shard_rows = self._field(self.manifest, "shard_rows", int)
        self.checksums = self._field(self.manifest, "checksums", dict)
        self._verified: set[str] = set()
        self._verify(SHARED)
        self.shared = load_shard(self.folder / SHARED)
        count = -(-self.images * self.views // self.shard_rows)
        self.shards = [load_shard(self.folder / shard_name(number)) for number in range(count)]

    def _field(self, fields: Any, name: str, kind: type) -> Any:
        value = fields.get(name.rpartition(".")[2]) if isinstance(fields, dict) else None
        if type(value) is not kind or (kind is int and value < 1):
            expected = {dict: "an object", int: "a whole number above 0"}[kind]
            raise OSError(f"{self.folder / MANIFEST}: {name}: got {value!r}, expected {expected}; {_REBUILD}")
        return value

    def _verify(self, name: str) -> None:
        """Compares a file with the checksum of what was written, once, before it is read."""
        if name in self._verified:
            return
        found, written = checksum(self.folder / name), self.checksums.get(name)
        if found != written:
            raise OSError(
                f"{self.folder / name}: checksum: got {found}, expected {written}; the file has changed since it was "
                f"written: {_REBUILD}"
            )
        self._verified.add(name)

    def __len__(self) -> int:
        return self.images

    def _check(self, identity: Mapping[str, Any]) -> None:
        saved = self.manifest["identity"]
        other = [name for name in identity if saved.get(name) != identity[name]]
        if other:
            differences = "; ".join(f"{name}: stored {saved.get(name)}, now {identity[name]}" for name in other)
            raise StaleStoreError(
                f"{self.folder}: the store is of another {', '.join(other)} ({differences}). It was left as it is: "
                "give another folder, or pass rebuild=True to replace it"
            )

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def batch(self, rows: Sequence[int] | torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """States of these rows, as `model(states=...)` takes them."""
        rows = torch.as_tensor(rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.images * self.views:
            raise IndexError(f"rows: got {rows.tolist()}, expected 0 to {self.images * self.views - 1}")
        numbers = rows // self.shard_rows
        states = {
            name: torch.empty(len(rows), *tensor.shape[1:], dtype=dtype) for name, tensor in self.shards[0].items()
        }
        for number in numbers.unique().tolist():
            here = (numbers == number).nonzero()[:, 0]
            inside = rows[here] - number * self.shard_rows
            self._verify(shard_name(number))
            for name, tensor in self.shards[number].items():
                states[name][here] = tensor[inside].to(dtype)
        return states | {name: tensor.to(dtype) for name, tensor in self.shared.items()}


class StoredExamples(Dataset):
    """Rows of a store with their labels, for a DataLoader or Trainer with `collate_fn=collate_stored`: one index at a
    time or a whole batch at once. Of several views one is drawn each time, while `draw_views`."""

    def __init__(self, store: StateStore, labels: Mapping[str, torch.Tensor], draw_views: bool = True) -> None:
        wrong = {name: len(tensor) for name, tensor in labels.items() if len(tensor) != len(store)}
        if wrong:
            raise ValueError(f"labels: got {wrong} rows, expected {len(store)}, one for each stored image")
        self.store, self.labels, self.draw_views = store, dict(labels), draw_views

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        indices = torch.as_tensor(indices)
        views = torch.zeros_like(indices)
        if self.draw_views and self.store.views > 1:
            views = torch.randint(self.store.views, indices.shape)
        found = {name: tensor[indices] for name, tensor in self.labels.items()}
        return {**found, "states": self.store.batch(views * len(self.store) + indices)}


def collate_stored(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def checksum(path: Path) -> int:
    """CRC-32, in blocks."""
    found = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                found = zlib.crc32(block, found)
    except OSError as error:
        raise OSError(f"{path}: missing or unreadable ({error}); {_REBUILD}") from error
    return found


def read_manifest(path: Path, missing_ok: bool = False) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        if missing_ok:
            return None
        raise OSError(f"{path}: no store of frozen states, or a damaged one ({error}); {_REBUILD}") from error


def load_shard(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: missing, damaged or cut short ({error}); {_REBUILD}") from error


try:
    from peft.utils import AuxiliaryTrainingWrapper
except ImportError:
    raise


_IDENTITY = "identity.json"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_FORMAT = 3
_SAYS_NOTHING_OF_STATES = {"au_thresholds", "au_class_weights", "loss_weights", "classification_target", "auto_map"}
_SAYS_NOTHING_OF_STATES |= {"architectures", "problem_type", "dtype", "id2label", "label2id", "_name_or_path"}
_SAYS_NOTHING_OF_STATES |= {"mf2_version", "transformers_version"}


def _ports(model: nn.Module) -> dict[str, nn.Module]:
    """Of each branch the port, or the layer that an adapter put in its place."""
    found = {
        n: m for n, m in model.named_modules() if getattr(m, "is_dfn_port", False) and not n.endswith("base_layer")
    }
    if not found:
        raise ValueError(f"model: got {type(model).__name__}, which has no port; expected a model of MF²")
    return {port.branch: port for port in found.values()}


def backbone_fingerprint(model: nn.Module) -> str:
    """Of all weights that the states depend on: not of adapters, and not of the heads that are trained beside them."""
    own = tuple(f"{name}." for name, module in model.named_modules() if _is_beside(module))
    heads = {*getattr(model, "adapter_heads", {}).get("all", [])}
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name.startswith(own) or heads & set(name.split(".")):
            continue
        name = name.removeprefix("base_model.model.")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _config_fingerprint(model: nn.Module) -> str:
    """Of what the weights alone do not tell, such as heads of attention, or where a region is read."""
    config = getattr(model, "config", None)
    fields = config.to_dict() if hasattr(config, "to_dict") else {}
    fields = {name: value for name, value in fields.items() if name not in _SAYS_NOTHING_OF_STATES}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _is_beside(module: nn.Module) -> bool:
    return isinstance(module, DFNLayer | AuxiliaryTrainingWrapper) or getattr(module, "is_dfn_port", False)


def store_identity(model: nn.Module, count: int, views: int, data: str, processor: Any, dtype: str) -> dict[str, Any]:
    """What the states of a store depend on. Whoever opens it has to come with the same."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {list(_DTYPES)}")
    read: dict[str, Any] = {}
    for branch, port in _ports(model).items():
        towers = (port.active_towers or {}) if isinstance(port, DFNLayer) else {}
        read[branch] = {name: {"layers": tower.layers, "pooling": tower.pooling} for name, tower in towers.items()}
    described = json.dumps(processor, sort_keys=True, default=str)
    return {
        **{"format": _FORMAT, "backbone": backbone_fingerprint(model), "config": _config_fingerprint(model)},
        **{"read": read, "dtype": dtype},
        **{"processor": hashlib.sha256(described.encode()).hexdigest()[:32], "data": data},
        **{"images": count, "views": views},
    }


@contextmanager
def recorded_states(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What flows through the ports in the next forward pass, by name; nothing else of the pass is changed."""
    found: dict[str, Any] = {}
    hooks = []
    ports = _ports(model)
    for branch, port in ports.items():
        if isinstance(port, DFNLayer) and port.active_towers is not None:
            port.recorded = found
        else:
            keep = lambda _, __, last, name=f"last_{branch}": found.update({name: last})  # noqa: E731
            hooks.append(port.register_forward_hook(keep))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for port in ports.values():
            if isinstance(port, DFNLayer):
                port.recorded = None


@torch.no_grad()
def compute_states(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of images to what `model(states=...)` takes: each tensor (images, 1 or AUs, ...), and those states that
    are the same for all images as `pathway.layer`."""
    training, images = model.training, len(next(iter(inputs.values())))
    model.eval()
    try:
        with recorded_states(model) as found:
            model(**inputs)
    finally:
        model.train(training)
    states: dict[str, torch.Tensor] = {}
    towers = {name: tower for port in _ports(model).values() for name, tower in _towers(port).items()}
    for name, value in found.items():
        if name not in towers:
            states[name] = value.unflatten(0, (images, -1)).detach()
            continue
        tower = towers[name]
        pairs = list(zip(tower.layers, value, strict=True))
        states |= {f"{name}.{layer}": state for layer, state in pairs if layer in tower.shared}
        own = [state for layer, state in pairs if layer not in tower.shared]
        if own:
            states[name] = torch.stack(own, dim=1).unflatten(0, (images, -1))
    return states


def _towers(port: nn.Module) -> dict[str, Any]:
    return (port.active_towers or {}) if isinstance(port, DFNLayer) else {}


def outputs_from_states(model: nn.Module, states: Mapping[str, torch.Tensor], **labels: torch.Tensor) -> Any:
    """The model's output to a batch of stored states: towers and heads alone are computed."""
    return model(states=dict(states), **labels)


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
    collate: Callable[[list], Mapping[str, torch.Tensor]] = default_collate,
) -> StateStore:
    """The store of these examples under `folder`, opened, or built where there is none.

    examples: of each image what `model` takes, such as pixel_values and landmarks. more_views: the same images,
        augmented otherwise. data: what changes when the examples do, such as a dataset's fingerprint.
    processor: what prepared them, as JSON can hold it. Of several processes one builds, and the others wait.
    """
    folder = Path(folder)
    views = [examples, *more_views]
    if any(len(view) != len(examples) for view in views) or not len(examples):
        raise ValueError(
            f"examples: got views of {[len(view) for view in views]} images, expected equally many, 1 or more"
        )
    identity = store_identity(model, len(examples), len(views), data, processor, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise FileExistsError(f"{folder}: is there and is no store; give another folder, or remove it")
        if folder.exists():
            shutil.rmtree(_replaced(folder), ignore_errors=True)  # of a process that was killed in `_replace`
        if folder.exists() and not rebuild:
            return StateStore(folder, identity)
        partial = folder.with_name(folder.name + ".partial")
        _build(partial, model, views, identity, _DTYPES[dtype], batch_size, shard_rows, collate)
        _replace(folder, partial)
    return StateStore(folder, identity)


def _replaced(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _replace(folder: Path, partial: Path) -> None:
    old = _replaced(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _build(
    partial: Path,
    model: nn.Module,
    views: list,
    identity: dict[str, Any],
    dtype: torch.dtype,
    batch_size: int,
    shard_rows: int,
    collate: Callable,
) -> None:
    plan = {"identity": identity, "shard_rows": shard_rows, "batch_size": batch_size}
    if partial.exists() and read_manifest(partial / _IDENTITY, missing_ok=True) != plan:
        shutil.rmtree(partial)  # begun for something else
    partial.mkdir(exist_ok=True)
    device = next(model.parameters()).device
    images, total = identity["images"], identity["images"] * identity["views"]
    try:
        write_file(partial / _IDENTITY, json.dumps(plan).encode())
        progress = tqdm(total=total, desc="frozen states", unit="image")
        for number, start in enumerate(range(0, total, shard_rows)):
            stop = min(start + shard_rows, total)
            if not (partial / shard_name(number)).is_file() or not (partial / SHARED).is_file():
                parts = []
                for first in range(start, stop, batch_size):
                    rows = range(first, min(first + batch_size, stop))
                    inputs = collate([views[row // images][row % images] for row in rows])
                    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
                    parts.append(_packed(compute_states(model, inputs), dtype))
                _write_shard(partial, number, parts, (total - start) / (stop - start))
            progress.update(stop - start)
        progress.close()
        names = [SHARED, *map(shard_name, range(-(-total // shard_rows)))]
        sums = {name: checksum(partial / name) for name in names}
        write_file(partial / MANIFEST, json.dumps({**plan, "checksums": sums}, indent=1).encode())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            shutil.rmtree(partial, ignore_errors=True)  # the disk is left as it was
        raise


def _packed(states: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    packed = {name: tensor.to(dtype).cpu().contiguous() for name, tensor in states.items()}
    for name, tensor in packed.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name}: got states that are no numbers, or too large for {str(dtype).removeprefix('torch.')}; store "
                "them with dtype='float32', and look at the model's weights if that does not help"
            )
    return packed


def _write_shard(partial: Path, number: int, parts: list[dict[str, torch.Tensor]], to_come: float) -> None:
    """to_come: this shard and those that follow, in shards."""
    own = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if "." not in name}
    needed = int(to_come * sum(tensor.nbytes for tensor in own.values()))
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"frozen states need {needed / 2**20:.1f} MiB more, but only {free / 2**20:.1f} MiB are free; give a "
            "folder on another disk, dtype='float16', fewer views, or go without a store",
            str(partial),
        )
    write_file(partial / SHARED, save({name: tensor for name, tensor in parts[0].items() if "." in name}))
    write_file(partial / shard_name(number), save(own))


__all__ = [
    "StaleStoreError",
    "StateStore",
    "StoredExamples",
    "backbone_fingerprint",
    "checksum",
    "collate_stored",
    "compute_states",
    "frozen_states",
    "load_shard",
    "outputs_from_states",
    "read_manifest",
    "recorded_states",
    "shard_name",
    "store_identity",
    "write_file",
]
