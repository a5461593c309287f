"""A folder of images by many machines: a job array, `datasets.map` or Ray Data, with the rows of one run.

python examples/many_machines.py [--by shards datasets ray] [--images 12]      (ray: pip install "ray[data]")

1. A job array needs only a folder that all jobs see. A job writes the rows of its part; given again, it continues.
   One command joins the parts. With SLURM (or GNU parallel: `parallel mf2 ... --shard {}/8 ::: 1 2 3 ...`):
       #SBATCH --array=1-8 --cpus-per-task=1
       export OMP_NUM_THREADS=1
       mf2 photos -o faces.csv --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT
       mf2 merge faces.csv   # when all of them are done
   Parts have equally many inputs; of videos, which differ, make more parts than there are machines.
2. `Analyzer` is a function of a batch, for datasets and Ray Data (`num_gpus=1` there for GPUs); every process loads its
   model once. A bad image is a row whose `error` says why (an Image feature needs decode=False for that).
This script draws faces, gives them to two processes, and compares the rows with those of one run; offline.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from mf2face import Analyzer, analyze
from mf2face.command_line import positive, run_as_command
from mf2face.data.synthetic.faces import draw_example


def by_shards(folder: Path) -> list[dict[str, Any]]:
    rows, mf2 = f"{folder}.jsonl", [sys.executable, "-m", "mf2face.inference.cli"]
    command = [*mf2, str(folder), "--aligned", "--quiet", "-o", rows, "--shard"]
    for job in [subprocess.Popen([*command, f"{index}/2"]) for index in (1, 2)]:
        job.wait()
    subprocess.run([*mf2, "merge", rows], check=True, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]


def by_datasets(folder: Path) -> list[dict[str, Any]]:
    table = datasets.Dataset.from_dict({"path": sorted(map(str, folder.iterdir()))})
    settings = {"batched": True, "batch_size": 4, "num_proc": 2, "remove_columns": table.column_names}
    return list(table.map(Analyzer(column="path", aligned=True), **settings))


def by_ray(folder: Path) -> list[dict[str, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False):
        table = ray.data.from_items([{"path": str(path)} for path in folder.iterdir()], override_num_blocks=4)
        return table.map_batches(Analyzer(column="path", aligned=True), batch_size=4).take_all()


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"shards": by_shards, "datasets": by_datasets, "ray": by_ray}
    parser.add_argument("--by", nargs="+", choices=list(ways), default=["shards", "datasets"])
    parser.add_argument("--images", type=positive, default=12)
    given, answers = parser.parse_args(argv), {}
    with tempfile.TemporaryDirectory() as scratch:
        (folder := Path(scratch) / "photos").mkdir()
        for index in range(given.images):
            Image.fromarray(draw_example(index, seed=3, size=160)[0]).save(folder / f"{index:04d}.png")
        (folder / "bad.png").write_text("no image")
        expected = {row["input"]: row["AU12"] for row in analyze(folder, aligned=True).rows}
        for way in given.by:
            answers[way] = ways[way](folder)
            found = {row["input"]: row["AU12"] for row in answers[way] if not row.get("error")}
            if found.keys() != expected.keys() or any(abs(found[name] - expected[name]) > 1e-5 for name in found):
                raise RuntimeError(f"{way}: rows differ from those of one run")
            print(f"{way}: {len(found)} rows, equal to those of one run")
    return answers


if __name__ == "__main__":
    run_as_command(main)
