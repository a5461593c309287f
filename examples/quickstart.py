"""A rendered face, the tiny model, a named result; then the paper's size, counted. Runs offline in half a minute.

python examples/quickstart.py [--checkpoint FOLDER_OR_NAME | --random] [--save FOLDER]
"""

import argparse

import torch

from configuration_mf2 import MF2Config
from mf2face.command_line import run_as_command
from mf2face.data.synthetic.faces import draw_example
from mf2face.files import RELEASED
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=RELEASED, help="a trained model; else the one that comes along")
    parser.add_argument("--random", action="store_true", help="untrained weights instead")
    parser.add_argument("--save", help="keep model and processor in this folder")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    if not arguments.random:
        model = MF2ForFaceAnalysis.from_pretrained(arguments.checkpoint)
        processor = MF2Processor.from_pretrained(arguments.checkpoint)
    else:
        config = MF2Config.from_size("tiny")
        processor = MF2Processor.for_model(config)
        model = MF2ForFaceAnalysis(config)
    model.eval()

    pixels, landmarks = draw_example(7, size=224)
    inputs = processor(images=pixels, landmarks=landmarks, return_tensors="pt")
    with torch.no_grad():
        result = processor.post_process_face_analysis(model(**inputs))[0]

    state = "RANDOM weights: these figures mean nothing" if arguments.random else f"checkpoint {arguments.checkpoint}"
    print(f"One synthetic face (rendered, no person), {state}\n")
    if "emotion" in result:
        print(f"emotion    {result['emotion']} (probability {result['emotions'][result['emotion']]:.2f})")
    for code, unit in result.get("action_units", {}).items():
        mark = "active" if unit["active"] else ""
        figures = f"probability {unit['probability']:.2f}, threshold {unit['threshold']:.2f}"
        print(f"{code:5} {unit['name']:22} {figures} {mark}")

    with torch.device("meta"):
        giant = MF2ForFaceAnalysis(MF2Config.from_size("giant"))
    print("\nThe same model at the paper's size (on the meta device, which needs no memory):")
    for name, part in (("Emo-VL", giant.mf2.emo_vl), ("AU-VL", giant.mf2.au_vl)):
        print(f"{name:7} {sum(p.numel() for p in part.parameters()):,} trainable parameters (the paper: 186.7 M)")
    if arguments.save:
        model.save_pretrained(arguments.save)
        processor.save_pretrained(arguments.save)
        print(f"\nSaved, with its code, in {arguments.save}")
    return result


if __name__ == "__main__":
    run_as_command(main)
