"""A label set of your own: which action units and emotions a model answers with is configuration, never code.

python examples/add_label_set.py [--steps 30]
1. `label_set="disfa"` (or bp4d, gft, raf_au, ...) takes a corpus's names; `action_units=` and `emotions=` take yours.
2. Each action unit is looked at in a region; one without a rule is refused, with what to do. `REGION_RULES` has them.
3. `from_pretrained(checkpoint, config=..., ignore_mismatched_sizes=True)` keeps the towers; what is a label's is new.
4. The heads have to learn: here some steps on rendered faces. `train.py --label_set disfa --dataset FOLDER` does all.
5. Config, processor and thresholds carry the names, so that every answer is named, also after saving and loading.
"""

import argparse
import tempfile

import torch

from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LabelSet
from mf2face.command_line import positive, run_as_command
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.inference.model import EMBEDDED
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


OWN = LabelSet(("AU4", "AU9", "AU12", "AU17", "AU25"), EMOTIONS)


def refused(**fields: object) -> str:
    try:
        MF2Config.from_size("tiny", **fields)
    except Exception as error:  # huggingface_hub wraps the ValueError in a class of its own
        return str(error).strip().splitlines()[-1].strip()
    return "taken"


def train(model: MF2ForFaceAnalysis, batch: dict[str, torch.Tensor], steps: int) -> list[float]:
    optimizer, losses = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        (loss := model(**batch).loss).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in {"--steps": 30, "--faces": 32}.items():
        parser.add_argument(name, type=positive, default=usual)
    given = parser.parse_args(argv)
    torch.manual_seed(0)
    disfa = MF2Config.from_size("tiny", label_set="disfa")
    print(f"disfa: {disfa.action_units}, emotions {disfa.emotions or 'none'}")
    for wrong in ({"action_units": ["AU12", "AU21"]}, {"action_units": ["AU12", "AU99"]}, {"emotions": ["Joy"] * 2}):
        print(f"{wrong}: {refused(**wrong)}")
    whole = MF2Config.from_size("tiny", action_units=["AU12", "AU21"], use_au_branch=False)
    print(f"without the AU branch, from the face as a whole: {whole.action_units}\n")

    names = {"action_units": list(OWN.action_units), "emotions": list(OWN.emotions), "au_thresholds": None}
    config = MF2Config.from_pretrained(EMBEDDED, **names)
    processor = MF2Processor.for_model(config)
    model = MF2ForFaceAnalysis.from_pretrained(EMBEDDED, config=config, ignore_mismatched_sizes=True)
    with tempfile.TemporaryDirectory() as folder:
        faces = MFASynthetic(given.faces, label_set=OWN, cache_dir=folder)
        examples = MF2Examples(faces, processor, texts=False)
        batch = MF2Collator(processor.tokenizer.pad_token_id)([examples[place] for place in range(len(examples))])
        losses = train(model, {name: value for name, value in batch.items() if name != "index"}, given.steps)
        print(f"loss {losses[0]:.3f}, after {given.steps} steps {losses[-1]:.3f} (synthetic faces)")
        model.save_pretrained(f"{folder}/mine"), processor.save_pretrained(f"{folder}/mine")
        again = MF2ForFaceAnalysis.from_pretrained(f"{folder}/mine").eval()
    with torch.no_grad():
        result = processor.post_process_face_analysis(again(batch["pixel_values"][:1], batch["landmarks"][:1]))[0]
    print(f"answers with {list(result['action_units'])}; emotion {result['emotion']}")
    return {"losses": losses, **result}


if __name__ == "__main__":
    run_as_command(main)
