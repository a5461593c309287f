"""An adapter of your own by peft: made, trained in a plain PyTorch loop, saved, loaded, switched, shared.

python examples/write_adapter.py [--method dfn|lora] [--steps 20] [--out FOLDER]
1. `get_peft_model(model, config)` freezes MF² and adds what is trained: DFN's towers beside it, LoRA's matrices in it.
2. Any loop will do, or transformers' Trainer, or `train.py --task dfn`, which stores what the frozen model computes.
3. `save_pretrained` writes the adapter alone; `PeftModel.from_pretrained(base, FOLDER)` puts it back.
4. One model holds several: `load_adapter`, `set_adapter("webcam")`, `with model.disable_adapter():` is the bare base.
5. To share: `push_adapter(model, "you/name")` of `modeling_mf2.dfn.model`, or peft's `push_to_hub` for LoRA.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mf2face.command_line import positive, run_as_command
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from mf2face.inference.model import EMBEDDED
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


CONFIGS = {  # for DFN: which hidden states its towers read, and how wide they are
    "dfn": DFNConfig(pathways=["visual", "vision"], bottleneck=32, pooling="mean"),
    "lora": LoraConfig(r=8, target_modules=r".*_vl\.qformer\..*\.[qv]_proj", modules_to_save=["classifiers"]),
}


def rendered_batch(processor: MF2Processor, style: str, count: int) -> dict[str, torch.Tensor]:
    truth, drawn = synthetic_truth(count, style, seed=3), [draw_example(i, style=style, seed=3) for i in range(count)]
    faces = {"images": [pixels for pixels, _ in drawn], "landmarks": [points for _, points in drawn]}
    return dict(processor(**faces, au_labels=truth["au_labels"].tolist(), emotion_labels=truth["emotion"].tolist()))


def train(model: PeftModel, batch: dict[str, torch.Tensor], steps: int) -> tuple[float, float]:
    optimizer, losses = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        (loss := model(**batch).loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(pixel_values=batch["pixel_values"], landmarks=batch["landmarks"]).au_logits.detach()


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dfn", choices=CONFIGS), parser.add_argument("--out")
    parser.add_argument("--steps", type=positive, default=20), parser.add_argument("--faces", type=positive, default=16)
    given = parser.parse_args(argv)
    torch.manual_seed(0)
    processor, losses, answers = MF2Processor.from_pretrained(EMBEDDED), {}, {}
    drawn = {style: rendered_batch(processor, style, given.faces) for style in ("street", "webcam")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.out or scratch)
        for style, batch in drawn.items():
            model = get_peft_model(MF2ForFaceAnalysis.from_pretrained(EMBEDDED), CONFIGS[given.method])
            losses[style] = train(model, batch, given.steps)
            print(f"{style}: loss on {given.faces} synthetic faces {losses[style][0]:.3f}, then {losses[style][1]:.3f}")
            model.save_pretrained(folder / style)
            answers[style] = logits(model, batch)
        bare = logits(base := MF2ForFaceAnalysis.from_pretrained(EMBEDDED), batch)
        both = PeftModel.from_pretrained(base, folder / "street", adapter_name="street")
        both.load_adapter(folder / "webcam", adapter_name="webcam")
    for style, expected in answers.items():
        both.set_adapter(style)
        torch.testing.assert_close(logits(both, drawn[style]), expected, rtol=0, atol=1e-4)
    with both.disable_adapter():
        torch.testing.assert_close(logits(both, batch), bare, rtol=0, atol=1e-5)
    print("loaded again, each adapter answers as when it was trained, and without one the model is the base")
    return losses


if __name__ == "__main__":
    run_as_command(main)
