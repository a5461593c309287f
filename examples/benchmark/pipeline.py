"""What a pipeline costs beside the bare model, and a cold `from_pretrained` beside its bytes and its modules.

python examples/benchmark/pipeline.py [--size tiny] [--images 64] [--batch_size 16] [--rounds 5] [--json FILE]

`pipeline_over_bare`: seconds of `face_pipeline("image-classification")` over a list of images, divided by those of the
processor and the model's forward pass over the same images in batches of the same size. Median over the rounds, each of
which times both, in turning order. Scores must be equal.

`cold_load_ratio`: seconds of `MF2ForPreTraining.from_pretrained` of a checkpoint of `--load_size`, divided by those of
building the same modules without weights, `safetensors.torch.load_file` of its file, and putting the tensors into their
places. Both end with a model that answers: no tensor is missing, every page of the file has been read, sums are equal.
Every measurement is the first thing that a new process does after its imports; a first one of each, left out, brings
the file into the system's cache.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import in_turns, options, show

from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor, face_pipeline


COLD = {
    "from_pretrained": """
model = MF2ForPreTraining.from_pretrained(folder)
""",
    "bytes_and_modules": """
with torch.device("meta"):
    model = MF2ForPreTraining(config)
model.load_state_dict(load_file(folder + "/model.safetensors"), assign=True)
for module in model.modules():
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_meta and buffer.numel() == 0:  # no file has these
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
model.eval()
""",
}
# Bytes are mapped and read when first used: a number of each page is, so that both have them all.
PROCESS = """
import sys, time
import torch
from safetensors.torch import load_file
from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForPreTraining
folder = sys.argv[1]
config = MF2Config.from_pretrained(folder)
start = time.perf_counter()
{work}
total = sum(tensor.flatten()[::512].sum() for tensor in model.state_dict().values())
passed = time.perf_counter() - start
assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
print(float(total), passed)
"""


def pipeline_over_bare(size: str, images: int, batch_size: int, rounds: int) -> float:
    config = MF2Config.from_size(size)
    processor, model = MF2Processor.for_model(config), MF2ForPreTraining(config).eval()
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (180, 160, 3), dtype=np.uint8)) for _ in range(images)]
    classify = face_pipeline("image-classification", model, processor)

    @torch.no_grad()
    def bare() -> torch.Tensor:
        parts = [pictures[start : start + batch_size] for start in range(0, images, batch_size)]
        return torch.cat([model(**processor(images=part, return_tensors="pt")).emotion_logits for part in parts])

    def piped() -> list[list[dict[str, object]]]:
        return classify(pictures, batch_size=batch_size)

    best = bare().softmax(dim=-1).amax(dim=-1).tolist()
    if not np.allclose(best, [answer[0]["score"] for answer in piped()], atol=1e-5):
        raise RuntimeError("the pipeline and the bare model differ: nothing to compare")
    measured = in_turns({"piped": piped, "bare": bare}, rounds)
    for times in measured:
        print(f"{images} images, batches of {batch_size}: pipeline {times['piped']:.3f}s, bare {times['bare']:.3f}s")
    return statistics.median(times["piped"] / times["bare"] for times in measured)


def cold_load_ratio(size: str, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("meta"):
            model = MF2ForPreTraining(MF2Config.from_size(size))
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(0.01 if tensor.is_floating_point() else 0)
        model.save_pretrained(folder)
        del model
        megabytes = (Path(folder) / "model.safetensors").stat().st_size / 2**20
        times: dict[str, list[float]] = {name: [] for name in COLD}
        sums = set()
        for number in range(rounds + 1):
            for name in sorted(COLD, reverse=bool(number % 2)):
                command = [sys.executable, "-c", PROCESS.format(work=COLD[name]), folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                total, passed = done.stdout.split()[-2:]
                sums.add(total)
                times[name].append(float(passed))
        if len(sums) > 1:
            raise RuntimeError(f"the two loaded different weights, of sums {sorted(sums)}: nothing to compare")
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{size}, {megabytes:.0f} MiB: " + ", ".join(f"{name} {value:.2f}s" for name, value in medians.items()))
    return medians["from_pretrained"] / medians["bytes_and_modules"]


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--load_size", default="base")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    figures = {
        "pipeline_over_bare": pipeline_over_bare(
            arguments.size, arguments.images, arguments.batch_size, arguments.rounds
        ),
        "cold_load_ratio": cold_load_ratio(arguments.load_size, arguments.rounds),
    }
    show(figures, "{:20} {:.3f}", arguments.json)
    return figures


if __name__ == "__main__":
    main()
