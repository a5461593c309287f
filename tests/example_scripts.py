"""Examples as modules; for the demo, two adapters that answer differently, and pictures as a browser sends them."""

import base64
import importlib
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import torch
from peft import get_peft_model
from PIL import Image

from mf2face.data.synthetic.faces import draw_example
from mf2face.inference.model import EMBEDDED
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis


EXAMPLES = Path(__file__).parent.parent / "examples"
DEMO = EXAMPLES / "demo"


def load(name: str) -> ModuleType:
    """`examples/<name>.py`, as a script that is run finds its neighbours."""
    path = EXAMPLES / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        if path.parent == DEMO:  # its modules import one another
            return importlib.import_module(path.stem)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


def write_adapters(folder: Path) -> Path:
    """`mild` and `wild`, of random weights, for the embedded model; they read the tower's blocks too."""
    for seed, name in enumerate(("mild", "wild"), 1):
        torch.manual_seed(seed)
        config = DFNConfig(bottleneck=4, pathways=["visual", "vision"])
        adapted = get_peft_model(MF2ForFaceAnalysis.from_pretrained(EMBEDDED), config)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "dfn_towers" in key and key.endswith("weight"):
                    weight += 0.15 * seed * torch.randn_like(weight)
        adapted.save_pretrained(folder / name)
    return folder


def face_bytes(index: int = 12, size: int = 160, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw_example(index, seed=2, size=size)[0]).save(content, kind)
    return content.getvalue()


def as_sent(content: bytes, name: str = "face.png") -> dict[str, object]:
    coded = base64.b64encode(content).decode()
    return {"name": name, "bytes": len(content), "data": f"data:image/png;base64,{coded}"}
