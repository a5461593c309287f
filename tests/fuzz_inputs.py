"""Damaged inputs for `test_fuzz.py`: what a case is, and how bytes, JSON and csv are damaged."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mf2face.data.synthetic.faces import draw_example


@dataclass(frozen=True)
class Case:
    """One input. make: writes it below a scratch folder and returns what the kind's `answer` takes.

    rule: `same`, the expected answer or a refusal; `finite`, any finite answer or a refusal, where the damage may
    change the answer (a pixel, a weight without checksum); `accept`, the expected answer only.
    names: a refusal must name one of these: the file or the field. expected: None where only a refusal is right.
    """

    label: str
    make: Callable[[Path], Any]
    rule: str
    names: tuple[str, ...]
    expected: Any = None


@dataclass(frozen=True)
class Damage:
    """content: a file's new bytes, or a function of the old ones. put: makes something else in its place."""

    label: str
    rule: str
    content: bytes | Callable[[bytes], bytes] = b""
    put: Callable[[Path], Any] | None = None
    field: str = ""

    def of(self, content: bytes) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content(content)

    def apply(self, path: Path) -> None:
        if self.put is None:
            path.write_bytes(self.of(path.read_bytes()))
        else:
            path.unlink()
            self.put(path)


@dataclass
class Answer:
    """reasons: every reason given for what is left out or odd."""

    value: Any
    reasons: list[str] = field(default_factory=list)


# How a user's path answers an input of a kind, and the kind's inputs.
Kind = tuple[Callable[[Any], Answer], Iterator[Case]]


def undamaged(answer: Callable[[Any], Answer], given: Any) -> Any:
    found = answer(given)
    assert found.value and not found.reasons, found
    return found.value


UNDAMAGED = Damage("undamaged", "accept", lambda content: content)


def damaged(
    source: Path, damages: Iterable[Damage], *names: str, expected: Any = None, prefix: str = ""
) -> Iterator[Case]:
    """Copies of `source`'s folder with this file damaged; `answer` gets the file's path in the copy."""

    def make(damage: Damage, scratch: Path) -> Path:
        copy = shutil.copytree(source.parent, scratch / "copy" / source.parent.name)
        damage.apply(copy / source.name)
        return copy / source.name

    for damage in damages:
        named = (source.name, "case/copy", *names, *filter(None, [damage.field]))
        yield Case(f"{prefix}{source.name}: {damage.label}", partial(make, damage), damage.rule, named, expected)


def byte_damages(
    rng: random.Random,
    size: int,
    *,
    flips: int,
    cuts: int,
    zeros: int = 2,
    end: int = 2**60,
    rule: str = "finite",
) -> Iterator[Damage]:
    """Flipped bits, missing ends, zeros, bytes inserted or lost, bytes behind the end.

    end: flips lie before this byte, for instance in a header. rule: `same` where a checksum finds changed bytes.
    """
    for _ in range(flips):
        places = [rng.randrange(min(end, size)) for _ in range(rng.choice((1, 1, 1, 3, 16)))]
        bits = [1 << rng.randrange(8) for _ in places]
        yield Damage(f"flip {places[:3]}", rule, partial(flipped, places=places, bits=bits))
    for _ in range(cuts):
        length = rng.choice(
            (rng.randrange(size), rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 40)))
        )
        yield Damage(f"cut to {length} of {size}", "same", lambda content, n=length: content[:n])
    for _ in range(zeros):
        start, length = rng.randrange(size), rng.choice((4, 64, 512))
        changes = {"zeros from": (length, bytes(min(length, size - start))), "bytes lost at": (length // 4, b"")}
        changes["bytes put in at"] = (0, b"\xa5" * (length // 4))
        for label, (old, new) in changes.items():
            yield Damage(f"{label} {start}", rule, lambda c, s=start, o=old, n=new: c[:s] + n + c[s + o :])
    if zeros:
        yield Damage("bytes behind the end", "same", lambda content: content + b"\0trailing" * 9)


def flipped(content: bytes, places: list[int], bits: list[int]) -> bytes:
    changed = bytearray(content)
    for place, bit in zip(places, bits, strict=True):
        changed[place % len(changed)] ^= bit
    return bytes(changed)


def overwritten(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


_TEXTS: dict[str, bytes | Callable[[bytes], bytes]] = {
    **{"empty": b"", "blanks": b" \n ", "null": b"null", "list": b"[]", "number": b"3", "text": b'"x"'},
    **{"deep": b"[" * 100_000, "binary": bytes(range(256)) * 4},
    "UTF-16": lambda c: c.decode().encode("utf-16"),
    "UTF-8 with mark": lambda c: b"\xef\xbb\xbf" + c,
    "latin-1": lambda c: c.replace(b"e", b"\xe9", 1),
    "late latin-1": lambda c: c[:-20] + c[-20:].replace(b'"', b'\xe9"', 1),
    "comma at the end": lambda c: c.rstrip().rstrip(b"}") + b",}",
    "deep field": lambda c: c.replace(b":", b": " + b'{"a":' * 20_000, 1),
    "NUL": lambda c: c[: len(c) // 2] + b"\0" + c[len(c) // 2 :],
    "half": lambda c: c[: len(c) // 2],
    "all but the end": lambda c: c.rstrip()[:-1],
    "twice": lambda c: c + c,
    "long number": lambda c: c.replace(b": ", b": " + b"9" * 5000, 1),
}
BINARY_TEXTS = ("empty", "null", "binary", "half", "twice")


def text_damages(*labels: str) -> Iterator[Damage]:
    return (Damage(label, "same", _TEXTS[label]) for label in labels or _TEXTS)


def odd_damages(*labels: str, image: str = "same") -> Iterator[Damage]:
    """What may stand in a file's place; a reader may wait for ever for a device or a pipe. image: the rule of one."""
    made: dict[str, Callable[[Path], Any]] = {
        "missing": lambda path: None,
        "folder": Path.mkdir,
        "link to nothing": lambda path: path.symlink_to("/nothing/there"),
        "link to itself": lambda path: path.symlink_to(path),
        "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "pipe": os.mkfifo,
        "zero bytes": Path.touch,
        "text": lambda path: path.write_text("no video\n" * 50),
        "zeros": lambda path: path.write_bytes(bytes(5000)),
        "image": lambda path: path.write_bytes(encoded(face(), "PNG")),
    }
    return (Damage(name, image if name == "image" else "same", put=made[name]) for name in labels or made)


_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 3, 100_000, 10**30, 0.25, -0.5, float("nan"), float("inf"), "", "x", "1"),
    *([], ["x"], [None], [0, 0, 0], [[1.0]], {}, {"x": 1}, {"height": -1}, "\ud800"),
)


def _fields_of(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Path and value of every field of a JSON document; of a list only its first value."""
    fields = content.items() if isinstance(content, dict) else enumerate(content[:1]) if type(content) is list else ()
    for name, value in fields:
        yield (*path, name), value
        yield from _fields_of(value, (*path, name))


def _json_type(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def json_damages(rng: random.Random, content: Any, each: int) -> Iterator[Damage]:
    """Each field with `each` other values, and the field left out.

    Another value of the same type, and null for "not given", may change the answer; a wrong type never.
    """

    def changed(path: tuple[Any, ...], **value: Any) -> bytes:
        new = json.loads(json.dumps(content))
        parent = new
        for name in path[:-1]:
            parent = parent[name]
        if value:
            parent[path[-1]] = value["to"]
        else:
            del parent[path[-1]]
        return json.dumps(new).encode()

    for path, old in _fields_of(content):
        field = next(str(name) for name in reversed(path) if not isinstance(name, int))
        where = ".".join(map(str, path))
        for value in rng.sample(_VALUES, each):
            is_legal = value is None or old is None or _json_type(value) == _json_type(old)
            is_for_all = isinstance(old, list) and old and {_json_type(old[0]), _json_type(value)} == {"number"}
            rule = "finite" if is_legal or is_for_all else "same"  # one number may stand for one of each
            yield Damage(f"{where} = {json.dumps(value)[:40]}", rule, changed(path, to=value), field=field)
        if isinstance(path[-1], str):
            yield Damage(f"{where} left out", "finite", changed(path), field=field)


def json_file_damages(rng: random.Random, source: Path, each: int) -> Iterator[Damage]:
    yield UNDAMAGED
    yield from json_damages(rng, json.loads(source.read_text()), each)
    yield from text_file_damages(rng, source)


def text_file_damages(rng: random.Random, source: Path) -> Iterator[Damage]:
    yield from text_damages()
    yield from byte_damages(rng, source.stat().st_size, flips=0, cuts=5, zeros=0)
    yield from odd_damages("missing", "folder", "link to nothing")


Row = list[str]


def csv_text(columns: Iterable[str], rows: Iterable[Row], mark: str = ",") -> bytes:
    return "".join(mark.join(row) + "\n" for row in (columns, *rows)).encode("utf-8", "surrogateescape")


def csv_damages(
    rng: random.Random, columns: Row, rows: list[Row], cells: Iterable[tuple[int, str, str]], places: Iterable[int]
) -> Iterator[Damage]:
    """cells: column, text and rule of a damaged cell. places: columns that are left out, repeated or renamed."""
    good, everything = csv_text(columns, rows), list(range(len(columns)))
    head, _, body = good.partition(b"\n")

    def kept(label: str, keep: list[int], names: Row = columns) -> Damage:
        return Damage(label, "same", csv_text([names[n] for n in keep], [[row[n] for n in keep] for row in rows]))

    yield UNDAMAGED
    for place, text, rule in cells:
        line, changed = rng.randrange(len(rows)), [[*row] for row in rows]
        changed[line][place] = text
        yield Damage(f"line {line + 2}, {columns[place]} = {text[:20]!r}", rule, csv_text(columns, changed))
    for place in places:
        name = columns[place]
        yield kept(f"without {name}", [n for n in everything if n != place])
        yield kept(f"{name} twice", [*everything, place])
        for other in ("other", columns[place - 1]):
            yield kept(f"{name} renamed to {other}", everything, [*columns[:place], other, *columns[place + 1 :]])
    yield kept("another order", rng.sample(everything, len(columns)))
    last_line = good.splitlines(keepends=True)[-1]
    for label, text in {
        **{"semicolons": csv_text(columns, rows, ";"), "carriage returns": good.replace(b"\n", b"\r\n")},
        **{"header twice": head + b"\n" + good, "no header": body, "header only": head + b"\n"},
        **{"row too long": good[:-1] + b",7\n", "row too short": good[: -len(last_line)] + last_line[:9] + b"\n"},
        **{"rows twice": good + body, "blank lines": good.replace(b"\n", b"\n\n")},
        **{"very many fields": good + b"," * 300_000, "a long field": good.replace(b"0.png", b"0" * 200_000 + b".png")},
    }.items():
        yield Damage(label, "same", text)
    for end in rng.sample([n for n, byte in enumerate(good) if byte == ord(",")], 14):  # between two values
        yield Damage(f"cut to {end}", "same", good[: end + rng.randrange(2)])
    yield from text_damages()


def face(index: int = 0, side: int = 96) -> Image.Image:
    return Image.fromarray(draw_example(index, seed=2, size=side)[0])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
