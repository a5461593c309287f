"""Parts of the inputs for many machines, each with its own output, and those outputs as one."""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from configuration_mf2.json_files import read_json
from mf2face.files import whole_file, write_whole
from mf2face.inference.result import Result
from mf2face.inference.rows import OutputError, differing_settings, format_of, has_face, lock_of


@dataclass(frozen=True)
class Shard:
    """A run of neighbouring inputs, so that outputs in the order of their shards have the rows of one run."""

    index: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        index, count = map(int, found.groups()) if (found := re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)) else (0, 0)
        if not 1 <= index <= count:
            raise ValueError(f"shard: got {text!r}, expected i/n, such as 1/8 to 8/8 for eight machines")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def part(self, files: Sequence[str | int]) -> list[str | int]:
        """A video or image is in one shard as a whole."""
        cameras = [one for one in files if isinstance(one, int)]
        if cameras:
            raise ValueError(f"shard: got camera {cameras[0]}, expected files, which every machine sees alike")
        start, stop = (len(files) * place // self.count for place in (self.index - 1, self.index))
        return list(files[start:stop])

    def path(self, output: str | os.PathLike) -> Path:
        """`faces.csv` -> `faces-2-of-8.csv`; of ten and more the numbers have equal lengths, to be in order by name."""
        path = Path(output)
        return path.with_name(f"{path.stem}-{self.index:0{len(str(self.count))}}-of-{self.count}{path.suffix}")


def fingerprint(files: Iterable[str | int]) -> str:
    """Of all inputs, in their order: shards that saw others would leave some out, or have them twice."""
    names = [os.path.abspath(one) for one in files]
    return f"{len(names)} with hash {hashlib.sha256(os.fsencode(chr(0).join(names))).hexdigest()[:12]}"


def merge_shards(output: str | os.PathLike, *, format: str | None = None, overwrite: bool = False) -> Result:
    """Writes the outputs of all shards as that of one run, and the facts beside it. The shards' files stay."""
    path, format = Path(output), format_of(output, format)
    try:
        shards = _find(path)
        with lock_of(path):
            if path.exists() and not overwrite:
                raise OutputError(f"output: {path} is there; name another, or overwrite it (--overwrite)")
            about = [_facts(shard, file, format) for shard, file in shards.items()]
            files = list(shards.values())
            for file, one in zip(files, about, strict=True):
                if differ := differing_settings(one["settings"], about[0]["settings"], f"{files[0].name}:"):
                    raise OutputError(f"shards: {file.name} was made with {differ}")
            return _merge(path, files, about, format)
    except OutputError:
        raise
    # What pyarrow, csv and damaged facts raise besides.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, csv.Error) as error:
        raise OutputError(f"output: {path} could not be merged ({type(error).__name__}: {error})") from error


def _find(path: Path) -> dict[Shard, Path]:
    """Files of all shards, in their order."""
    pattern = re.compile(rf"{re.escape(path.stem)}-(\d{{1,5}})-of-(\d{{1,5}}){re.escape(path.suffix)}")
    found: dict[Shard, Path] = {}
    for name in sorted(os.listdir(path.parent)):
        if match := pattern.fullmatch(name):
            shard = Shard(int(match[1]), int(match[2]))
            if shard in found:
                raise OutputError(f"shards: got {found[shard].name} and {name}, expected shard {shard} once")
            found[shard] = path.with_name(name)
    counts = sorted({shard.count for shard in found})
    if len(counts) != 1:
        example = Shard(1, 8).path(path).name
        raise OutputError(
            f"shards: got {'none' if not counts else f'some of {counts}'} beside {path}, expected all shards of one "
            f"division, such as {example}"
        )
    every = [Shard(index, counts[0]) for index in range(1, counts[0] + 1)]
    if missing := [shard for shard in every if shard not in found]:
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise OutputError(f"shards: {len(missing)} of {counts[0]} are missing; run --shard {names}")
    if extra := set(found) - set(every):
        raise OutputError(f"shards: got {found[extra.pop()].name}, expected 1 to {counts[0]}")
    return {shard: found[shard] for shard in every}


def _facts(shard: Shard, file: Path, format: str) -> dict[str, Any]:
    about = read_json(Path(f"{file}.about.json"))
    if not about["finished"]:
        raise OutputError(f"shards: {file.name} is not finished ({about.get('stopped')}); run --shard {shard} again")
    if about["settings"].pop("shard", None) != str(shard):
        raise OutputError(f"shards: {file.name} is not of shard {shard}, but another file by this name")
    if format != "parquet" and about["bytes"] != file.stat().st_size:
        raise OutputError(f"shards: {file.name} has {file.stat().st_size} bytes, expected {about['bytes']}; is it cut?")
    return about


def _merge(path: Path, files: Sequence[Path], about: Sequence[dict[str, Any]], format: str) -> Result:
    summary = _summary(files, about, format)
    settings = {name: value for name, value in about[0]["settings"].items() if name != "inputs"}
    merged = {**about[0], **summary.facts(), "settings": settings, "finished": True}
    with whole_file(path) as part:
        if format == "parquet":
            merged["bytes"] = sum(one["bytes"] for one in about)
            _join_parquet(part, files, merged)
        else:
            _join_lines(part, files, headed=format == "csv")
            merged["bytes"] = part.stat().st_size
        path.unlink(missing_ok=True)  # the facts never stand beside rows of another run
        write_whole(f"{path}.about.json", json.dumps(merged, indent=1) + "\n", shared=False)
    summary.output = path
    return summary


def _summary(files: Sequence[Path], about: Sequence[dict[str, Any]], format: str) -> Result:
    """Frames and faces are counted anew: the facts of a shard that was continued name those of its last run only."""
    summary = Result(seconds=sum(one["seconds"] for one in about))
    summary.batch_size = max(one["batch_size"] for one in about)
    for one in about:
        for entry in one["skipped"]:
            summary.skip(entry["input"], entry["why"])
        summary.left_out += one["left_out"] - len(one["skipped"])
    for file in files:
        for _, group in groupby(_places(file, format), lambda row: (row["input"], row["frame"])):
            rows = list(group)
            faces = sum(map(has_face, rows))
            summary.frames, summary.faces = summary.frames + 1, summary.faces + faces
            summary.without_face += not faces and not any(row["error"] for row in rows)
            if str(rows[0]["time_s"] or "NaN").lower() not in ("nan", "none"):
                summary.noun = "frame"
    return summary


def _places(file: Path, format: str) -> Iterator[Mapping[str, Any]]:
    if format == "parquet":
        from pyarrow import parquet

        with parquet.ParquetFile(file) as packed:
            for batch in packed.iter_batches(columns=["input", "frame", "time_s", "face_id", "error"]):
                yield from batch.to_pylist()
        return
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
        yield from csv.DictReader(lines) if format == "csv" else map(json.loads, lines)


def _join_lines(part: Path, files: Sequence[Path], headed: bool) -> None:
    """headed: the first line is the same in all files, and stands once."""
    first = None
    with open(part, "wb") as merged:
        for file in files:
            with open(file, "rb") as lines:
                header = lines.readline() if headed else b""
                if first is None:
                    first = header
                    merged.write(header)
                elif header != first:
                    raise OutputError(f"shards: {file.name} has other columns than {files[0].name}")
                shutil.copyfileobj(lines, merged)


def _join_parquet(part: Path, files: Sequence[Path], about: Mapping[str, Any]) -> None:
    from pyarrow import Table, parquet

    schema = parquet.read_schema(files[0]).with_metadata({"mf2": json.dumps(about)})
    with parquet.ParquetWriter(part, schema) as merged:
        for file in files:
            with parquet.ParquetFile(file) as packed:
                if not packed.schema_arrow.equals(schema):
                    raise OutputError(f"shards: {file.name} has other columns than {files[0].name}")
                for batch in packed.iter_batches():
                    merged.write_table(Table.from_batches([batch]).cast(schema))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mf2 merge", description=merge_shards.__doc__)
    parser.add_argument("output", metavar="FILE", help="the name that was given as -o to every shard")
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), help="by the ending unless given")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    given = parser.parse_args(argv)
    print(merge_shards(given.output, format=given.format, overwrite=given.overwrite).text(), file=sys.stderr)
    return 0


__all__ = ["Shard", "fingerprint", "main", "merge_shards"]
