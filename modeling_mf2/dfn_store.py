"""Reading a store of frozen states: safetensors shards, memory-mapped, and `store.json`, which says what of."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset


MANIFEST, SHARED = "store.json", "shared.safetensors"
_REBUILD = "build the store anew (rebuild=True; train.py: --rebuild_store True)"


class StaleStoreError(ValueError):
    """A store holds the states of another model, adapter, processor or dataset."""


class StateStore:
    """A whole store, memory-mapped. Row `view * images + index` is that view of that image."""

    def __init__(self, folder: str | Path, identity: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / MANIFEST)
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


def read_json(path: Path, missing_ok: bool = False) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if missing_ok:
            return None
        raise OSError(f"{path}: no store of frozen states, or a damaged one ({error}); {_REBUILD}") from error


def load_shard(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: missing, damaged or cut short ({error}); {_REBUILD}") from error


__all__ = [
    "StaleStoreError",
    "StateStore",
    "StoredExamples",
    "checksum",
    "collate_stored",
    "load_shard",
    "read_json",
    "shard_name",
    "write_file",
]
