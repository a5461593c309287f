"""Does every route give the same answer? Runs torch (the reference), torch one by one, ONNX, 8 bits, the pipeline of
transformers and the command over the same faces, and compares probabilities and decisions.

mf2 certify photos --model NAME
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mf2face.files import write_whole
from mf2face.inference.analyze import analyze
from mf2face.inference.model import load_model
from mf2face.inference.rows import TEXT_COLUMNS, has_face, unescape_cell, unit_column


LIMIT = 1e-3
"""Largest difference of a probability; and no decision may differ."""
INT8_LIMIT = 0.01
"""Share of decisions that may differ for 8 bits."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Route:
    name: str
    faces: int
    difference: float
    """Largest one of a probability."""
    differ: int
    """Decisions (each AU, and the top emotion) that are not the reference's."""
    decisions: int

    @property
    def is_certified(self) -> bool:
        if self.name == "int8":
            return self.differ <= INT8_LIMIT * self.decisions
        return self.difference <= LIMIT and self.differ == 0


def certify(
    inputs: Any,
    model: str | os.PathLike | None = None,
    *,
    aligned: bool = False,
    most: int = 200,
    more: Mapping[str, Callable[[Rows], Rows]] | None = None,
) -> list[Route]:
    """inputs: still images; the first faces of them, at most `most`. more: name -> further routes, from the rows of
    the reference to rows of the same faces in their order."""
    loaded = load_model(model, device="cpu")
    columns = loaded.columns(False)
    limits = dict(zip(map(unit_column, columns.action_units), loaded.pipeline.processor.thresholds(), strict=True))
    found = analyze(inputs, model=loaded, aligned=aligned)
    reference = [row for row in found.rows if has_face(row)][:most]
    if not reference:
        why = ": ".join(found.skipped[0]) if found.skipped else "--aligned if each image is one face that fills it"
        raise ValueError(f"inputs: got no face, expected still images with faces ({why})")
    files = list(dict.fromkeys(row["input"] for row in reference))
    same = {"aligned": aligned, "device": "cpu"}
    routes: dict[str, Callable[[Rows], Rows]] = {
        "torch, one by one": lambda rows: analyze(files, model=loaded, batch_size=1, **same).rows,
        "onnx": lambda rows: analyze(files, model=model, engine="onnx", **same).rows,
        "int8": lambda rows: analyze(files, model=model, engine="int8", **same).rows,
        "pipeline": lambda rows: _by_pipeline(rows, model, loaded, aligned),
        "command": lambda rows: _by_command(files, model, aligned),
        **(more or {}),
    }
    names = [*limits, *columns.emotions]
    return [_compared(name, reference, list(route(reference)), names, list(limits)) for name, route in routes.items()]


def _compared(name: str, reference: Rows, rows: Rows, names: Sequence[str], units: Sequence[str]) -> Route:
    answers = {(row["input"], int(float(row["face_id"]))): row for row in rows if has_face(row)}
    largest, differ = 0.0, 0
    for row in reference:
        other = answers.get((row["input"], int(row["face_id"])))
        if other is None:
            raise ValueError(f"the route {name} has no face {row['face_id']} of {row['input']}")
        largest = max([largest, *(abs(float(other[column]) - row[column]) for column in names)])
        differ += sum(int(float(other[f"{unit}_c"])) != row[f"{unit}_c"] for unit in units)
        differ += "top_emotion" in row and other["top_emotion"] != row["top_emotion"]
    return Route(name, len(reference), largest, differ, len(reference) * (len(units) + ("top_emotion" in reference[0])))


def rows_of_answers(reference: Rows, answers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as far as `certify` reads them, of answers of the pipeline to the faces of the reference."""
    rows = []
    for row, answer in zip(reference, answers, strict=True):
        units = answer.get("action_units", {}).items()
        made = {"input": row["input"], "face_id": row["face_id"], "top_emotion": answer.get("emotion")}
        made |= {unit_column(code): unit["probability"] for code, unit in units} | answer.get("emotions", {})
        rows.append(made | {f"{unit_column(code)}_c": int(unit["active"]) for code, unit in units})
    return rows


def _by_pipeline(reference: Rows, model: Any, loaded: Any, aligned: bool) -> Rows:
    from mf2face.inference.model import EMBEDDED
    from processing_mf2.pipelines import face_pipeline

    def item(row: Mapping[str, Any]) -> Any:
        points = None if aligned else [[row[f"x_{point}"], row[f"y_{point}"]] for point in range(68)]
        return {"image": row["input"], "landmarks": points}

    ask = face_pipeline("face-analysis", os.fspath(model or EMBEDDED), device="cpu")
    answers = ask([item(row) for row in reference], batch_size=8, landmark_source="template")
    return rows_of_answers(reference, (faces[0] for faces in answers))


def _by_command(files: Sequence[str], model: Any, aligned: bool) -> Rows:
    with tempfile.TemporaryDirectory(prefix="mf2-certify-") as folder:
        listed, out = Path(folder) / "files.txt", Path(folder) / "rows.csv"
        listed.write_text("\n".join(map(os.path.abspath, files)), encoding="utf-8", errors="surrogateescape")
        options = ["--device", "cpu", "--quiet", *(["--aligned"] if aligned else [])]
        options += ["--model", os.fspath(model)] if model else []
        command = [sys.executable, "-m", "mf2face.inference.cli", str(listed), "-o", str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 1):
            raise RuntimeError(f"the command ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        with open(out, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [
                {name: unescape_cell(c) if name in TEXT_COLUMNS else c for name, c in row.items()}
                for row in csv.DictReader(file)
            ]
    given = {os.path.abspath(name): name for name in files}
    return [{**row, "input": given[row["input"]]} for row in rows]


def figures(routes: Sequence[Route]) -> dict[str, float]:
    """As the benchmark names them."""
    exact = [route for route in routes if route.name != "int8"]
    found = {"routes_faces": routes[0].faces, "routes_max_difference": max(route.difference for route in exact)}
    found["routes_decisions_differ"] = sum(route.differ for route in exact)
    for route in routes:
        if route.name == "int8":
            found["int8_decisions_differ"] = route.differ / route.decisions
    return found


def table(routes: Sequence[Route]) -> str:
    lines = [f"{'route':20}{'faces':>7}{'largest difference':>21}{'decisions that differ':>24}  certified"]
    for one in routes:
        share = f"{one.differ:,} of {one.decisions:,}"
        lines.append(
            f"{one.name:20}{one.faces:7,}{one.difference:21.1e}{share:>24}  {'yes' if one.is_certified else 'NO'}"
        )
    lines.append(
        f"against torch in batches; at most {LIMIT:g} and no decision, for int8 {INT8_LIMIT:.0%} of the decisions"
    )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mf2 certify", description=__doc__, formatter_class=form)
    parser.add_argument("inputs", nargs="+", help="still images, folders, or a .txt list of them")
    parser.add_argument("--model", metavar="NAME", help="a folder or a name on the Hub; else the small synthetic one")
    parser.add_argument("--aligned", action="store_true", help="each image is one face that fills it (no detector)")
    parser.add_argument("--faces", type=int, default=200, metavar="N", help="at most so many faces")
    parser.add_argument("--json", metavar="FILE", help="all figures as one flat object")
    given = parser.parse_args(argv)
    routes = certify(given.inputs, given.model, aligned=given.aligned, most=given.faces)
    if given.json:
        write_whole(given.json, json.dumps(figures(routes), indent=1) + "\n")
    print(table(routes))
    return 0 if all(route.is_certified for route in routes) else 1


__all__ = ["LIMIT", "Route", "certify", "figures", "main", "rows_of_answers", "table"]
