"""Writes the table "What has been run where" of docs/paper.md from run_where.json, to which benchmarks add.

python examples/benchmark/run_where.py
"""

import re
from pathlib import Path

from report import RUNS, markdown_table, read_json


PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper.md"
# What a lab needs, and the benchmark that notes it when it has run.
ROWS = {
    "pre-training and inference": "gpu.py",
    "--mixed": "gpu.py --mixed (float32 weights under bfloat16 autocast, as `--bf16`)",
    "--checkpointing": "gpu.py --checkpointing",
    "--compile": "gpu.py --compile",
    "memory as the dry run estimates it": "gpu.py --parts memory, paper_scale.py",
    "DFN: a store, and steps from it": "gpu.py --parts dfn",
    "a store by two processes": "paper_scale.py --parts processes",
    "examples/accelerate/ddp.yaml": "gpu.py --parts launch (on a CPU: torchrun)",
    "examples/accelerate/fsdp.yaml": "gpu.py --parts launch",
    "examples/accelerate/deepspeed_zero2.yaml": "gpu.py --parts launch",
    "examples/accelerate/multi_node.yaml": "by hand",
    "the recipe from build to tables": "examples/paper/recipe.py",
}


def cell(run: dict[str, str] | None) -> str:
    return f"{run['settings']} ({run['machine']}, {run['date']}, {run['commit']})" if run else "never"


def table() -> str:
    runs = read_json(RUNS) or {}
    rows = [[name, *(cell(runs.get(name, {}).get(kind)) for kind in ("cpu", "cuda")), by] for name, by in ROWS.items()]
    return markdown_table(["what", "on a CPU", "on a GPU", "noted by"], rows)


def filled(page: str) -> str:
    between = re.compile(r"(?<=<!-- run_where -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
    return between.sub(lambda _: table(), page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())
