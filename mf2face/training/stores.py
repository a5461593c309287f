"""What the frozen tower sees in each image, computed once a run instead of once an epoch, and read from the disk."""

import hashlib
import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from datasets.fingerprint import generate_fingerprint
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from configuration_mf2.json_files import read_json
from mf2face.data.examples import MF2Collator, MF2Examples
from modeling_mf2.dfn.states import checksum
from modeling_mf2.vision import MF2VisionTower


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_PART = ".part-"
_TOKENS, _LANDMARKS = "image_tokens.npy", "landmarks.npy"


class VisionStore:
    """Row by row `image_tokens` (float16) and `landmarks`, memory-mapped; a file that has changed is refused."""

    def __init__(self, folder: Path) -> None:
        written = _read_checksums(folder)
        self.tokens, self.landmarks = (_open(folder, name, written[name]) for name in (_TOKENS, _LANDMARKS))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "image_tokens": torch.from_numpy(self.tokens[index].astype(np.float32)),
            "landmarks": torch.from_numpy(self.landmarks[index].copy()),
        }


def store_fingerprint(tower: MF2VisionTower, examples: MF2Examples) -> str:
    """Changes with the tower's weights, the image processor and the rows: a stale store is never read."""
    digest = hashlib.sha256(b"2")  # of the format of its files
    for name, tensor in tower.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(examples.processor.image_processor.to_dict(), sort_keys=True, default=str).encode())
    digest.update(f"{generate_fingerprint(examples.dataset)} {len(examples)}".encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def load_or_store_vision(
    tower: MF2VisionTower, examples: MF2Examples, root: str | Path, batch_size: int = 64
) -> VisionStore:
    """The store of these rows under `root`, built if it is not there; whole or absent, whatever interrupts it.

    Of several processes one builds it, and the others wait; machines that do not share `root` build one each.
    """
    folder = Path(root) / store_fingerprint(tower, examples)
    remove_leftovers(folder.parent)
    if not (folder / _COMPLETE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_file(folder)):
            if not (folder / _COMPLETE).is_file():
                _build(folder, tower, examples, batch_size)
    return VisionStore(folder)


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def remove_leftovers(root: Path) -> None:
    """Removes what killed builds left: a scratch folder whose store no process holds the lock of."""
    for scratch in root.glob(f"{_PART}*"):
        lock = FileLock(_lock_file(root / scratch.name.removeprefix(_PART)))
        with suppress(Timeout), lock.acquire(timeout=0):
            shutil.rmtree(scratch, ignore_errors=True)


def _read_checksums(folder: Path) -> dict[str, str]:
    try:
        written = read_json(folder / _COMPLETE)["checksums"]
        return {name: written[name] for name in (_TOKENS, _LANDMARKS)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / _COMPLETE, "no checksums, expected one of each file") from error


def _open(folder: Path, name: str, written: str) -> np.ndarray:
    try:
        found = checksum(folder / name)
        if found != written:
            raise ValueError(f"checksum: got {found}, expected {written}")
        return np.load(folder / name, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(folder / name, error) from error


def _damaged(file: Path, what: object) -> OSError:
    return OSError(
        f"{file}: the stored output of the vision tower is damaged ({what}); remove {file.parent}, and it is computed "
        "anew"
    )


def _build(folder: Path, tower: MF2VisionTower, examples: MF2Examples, batch_size: int) -> None:
    vision, count = tower.config, len(examples)
    length = vision.num_prefix_tokens + vision.grid_size**2
    scratch = folder.with_name(f"{_PART}{folder.name}")
    scratch.mkdir()
    try:
        open_new = np.lib.format.open_memmap
        tokens = open_new(scratch / _TOKENS, "w+", np.float16, (count, length, vision.hidden_size))
        landmarks = open_new(scratch / _LANDMARKS, "w+", np.float32, (count, 68, 2))
        loader = DataLoader(examples, batch_size, collate_fn=MF2Collator(examples.processor.tokenizer.pad_token_id))
        training, start = tower.training, 0
        tower.eval()
        for batch in tqdm(loader, desc="what the vision tower sees", unit="batch"):
            seen = tower(batch["pixel_values"].to(tower.device))
            tokens[start : start + len(seen)] = seen.cpu().to(torch.float16).numpy()
            landmarks[start : start + len(seen)] = batch["landmarks"].numpy()
            start += len(seen)
        tower.train(training)
        tokens.flush()
        landmarks.flush()
        sums = {name: checksum(scratch / name) for name in (_TOKENS, _LANDMARKS)}
        (scratch / _COMPLETE).write_text(json.dumps({"images": count, "tokens": length, "checksums": sums}))
        if folder.exists():  # without its end
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
