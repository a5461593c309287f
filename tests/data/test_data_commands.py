"""A user's mistake on the command line of an example ends in a sentence."""

import runpy

import pytest
from kill_points import ROOT, KillServer
from PIL import Image


@pytest.fixture(scope="module")
def server():
    preload = ["mf2face.data.build.mfa", "mf2face.captions.run", "mf2face.data.synthetic.faces"]
    with KillServer([*preload, "mf2face.data.corpora.read"]) as started:
        yield started


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 90, 9)).save(folder / f"{number}.png")
    lines = [f"{number}.png,Fear,p{number}" for number in range(6)]
    (folder / "labels.csv").write_text("\n".join(["image,emotion,subject", *lines]))
    (folder / "a_file").write_text("")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "train"], "sizes: got 'train', expected NAME=NUMBER"),
        (["--sizes", "train=most"], "sizes: got 'train=most', expected NAME=NUMBER"),
        (["--sizes", "training=1"], "split_sizes: got"),
        (["--per_emotion", "train=1.5"], "per_emotion: got 'train=1.5', expected NAME=WHOLE NUMBER"),
        (["--reader", "licence"], "reader: got 'licence', expected NAME=VALUE"),
        (["--reader", "licence=3"], "licence: got 3, expected a text"),
        (["--map", "Contempt"], "map: got 'Contempt', expected NAME=EMOTION"),
        (["--map", "Contempt=Othr"], "map: got Contempt=Othr, expected one of Neutral"),
        (["--label_set", "none"], "label_set"),
        (["--require", "au"], "require='au'"),
        (["--fold", "2"], "expected one for every video"),
        (["--margin", "nan"], "margin: got nan, expected 0 to 1"),
        (["--min_confidence", "7"], "min_confidence: got 7.0, expected 0 to 1"),
        (["--seed", "-1"], "seed: got -1"),
        (["--every", "0"], "every: got 0"),
        (["--landmark_cache", "{folder}/a_file/cache", "--landmarks", "detector"], "a_file"),
    ],
)
def test_mistakes_of_build_dataset(server, pictures, tmp_path, options, message):
    options = [option.format(folder=pictures) for option in options]
    command = ["examples/build_dataset.py", "own", str(pictures), str(tmp_path / "out"), "--landmarks", "template"]
    run = server.run([*command, *options])
    assert run.returncode in (1, 2) and message in run.output and "Traceback" not in run.output, run.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "{folder}/nowhere"], "dataset: there is no folder"),
        (["--dataset", "{folder}"], "dataset: "),
        (["--dataset", "{folder}/damaged"], "dataset: "),
        (["--writer", "chat", "--model", "unheard-of", "--budget", "1"], "budget: the price of 'unheard-of'"),
        (["--writer", "chat", "--budget", "-1"], "budget"),
        (["--writer", "chat", "--concurrency", "0"], "concurrency"),
        (["--writer", "chat", "--price", "1", "-1"], "price"),
        (["--writer", "chat"], "OPENAI_API_KEY"),
        (["--out", "{folder}/a_file/below"], "a_file"),
    ],
)
def test_mistakes_of_write_captions(server, pictures, tmp_path, options, message):
    damaged = pictures / "damaged" / "data"
    damaged.mkdir(parents=True, exist_ok=True)
    (damaged / "train-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(50))
    options = [option.format(folder=pictures) for option in options]
    run = server.run(["examples/write_captions.py", "--out", str(tmp_path / "out"), *options])
    assert run.returncode in (1, 2) and message in run.output and "Traceback" not in run.output, run.output


def test_near_identical_images_are_dropped_only_when_asked_or_for_the_papers_counts():
    parse = runpy.run_path(str(ROOT / "examples" / "build_dataset.py"))["parse"]
    near = {extra: parse(["own", "a", "b", *extra.split()]).near for extra in ("", "--paper", "--paper --near keep")}
    assert near == {"": "keep", "--paper": "drop", "--paper --near keep": "keep"}
