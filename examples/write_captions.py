"""Writes captions for a folder of MFA (or a few synthetic faces), by rule or by a chat model, into a copy of it.

python examples/write_captions.py                                               # by rule: offline, at once
python examples/write_captions.py --dataset mfa --writer chat --estimate        # what gpt-4o would cost
python examples/write_captions.py --dataset mfa --writer chat --budget 20 --send_images
python examples/write_captions.py --dataset mfa --writer chat --protocol paper  # images, three prompts, as the paper
python examples/write_captions.py --writer chat --model my-model --base_url http://localhost:8000/v1

The key is read from OPENAI_API_KEY. After a kill, run the same line again: what is in the journal is not paid again.
"""

import argparse
from pathlib import Path

from mf2face.captions.batch import write_by_batch
from mf2face.captions.prices import Price
from mf2face.captions.run import ChatWriter
from mf2face.captions.styles import STYLES, CaptionRows, join_captions, save_captions, write_by_rule
from mf2face.command_line import run_as_command
from mf2face.data.cache import load_folder, save_whole
from mf2face.data.schema import described_labels
from mf2face.data.synthetic.faces import MFASynthetic


def main(argv: list[str] | None = None) -> Path | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="a folder that build_dataset or save_to_disk wrote")
    parser.add_argument("--out", type=Path, default=Path("outputs/captions"))
    parser.add_argument("--writer", default="rule", choices=("rule", "chat"))
    parser.add_argument("--style", default="mfa", choices=tuple(STYLES))
    parser.add_argument("--seed", type=int, default=0, help="of the rule's wording")
    parser.add_argument("--model", default="gpt-4o")
    parser.add_argument("--base_url", help="another server that speaks OpenAI's chat API")
    parser.add_argument("--send_images", action="store_true", help="else the model sees labels only")
    separate = "paper: three separate prompts an image, with the image, as the MFA paper; joint: one for all captions"
    parser.add_argument("--protocol", default="joint", choices=("joint", "paper"), help=separate)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--budget", type=float, help="dollars that are never passed")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="dollars for a million tokens")
    parser.add_argument("--batch", action="store_true", help="the Batch API: half the price, within a day")
    parser.add_argument("--estimate", action="store_true", help="only say what it would cost")
    arguments = parser.parse_args(argv)
    synthetic = arguments.dataset == "synthetic"
    dataset = MFASynthetic(64, size=64) if synthetic else load_folder(arguments.dataset)
    labels = described_labels(dataset) or "mfa"
    send_images = arguments.send_images or arguments.protocol == "paper"
    rows = CaptionRows(dataset, images=send_images)
    if arguments.writer == "rule":
        captions = list(write_by_rule(rows, arguments.style, labels, seed=arguments.seed))
    else:
        writer = ChatWriter(
            arguments.model,
            **{"style": arguments.style, "label_set": labels, "base_url": arguments.base_url},
            **{"send_images": send_images, "concurrency": arguments.concurrency, "protocol": arguments.protocol},
            **{"budget": arguments.budget, "price": Price(*arguments.price) if arguments.price else None},
        )
        print(writer.estimate(rows, batch=arguments.batch))
        if arguments.estimate:
            return None
        journal = arguments.out / "journal.jsonl"
        print(write_by_batch(writer, rows, journal) if arguments.batch else writer.write(rows, journal))
        captions = list(writer.read(rows, journal))
    arguments.out.mkdir(parents=True, exist_ok=True)
    count = save_captions(arguments.out / "captions.jsonl", captions)
    save_whole(join_captions(dataset, captions, keep_missing=True), arguments.out / "dataset")
    print(f"{count} rows in {arguments.out / 'captions.jsonl'}; the data set with them: {arguments.out / 'dataset'}")
    return arguments.out


if __name__ == "__main__":
    run_as_command(main)
