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
    (folder / "damaged" / "data").mkdir(parents=True)
    (folder / "damaged" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1" + bytes(50))
    return folder


BUILD = "build_dataset.py own {folder} {out} --landmarks template "
CAPTIONS = "write_captions.py --out {out} "


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (BUILD + "--sizes train", "sizes: got 'train', expected NAME=NUMBER"),
        (BUILD + "--sizes train=most", "sizes: got 'train=most', expected NAME=NUMBER"),
        (BUILD + "--sizes training=1", "split_sizes: got"),
        (BUILD + "--per_emotion train=1.5", "per_emotion: got 'train=1.5', expected NAME=WHOLE NUMBER"),
        (BUILD + "--reader licence", "reader: got 'licence', expected NAME=VALUE"),
        (BUILD + "--reader licence=3", "licence: got 3, expected a text"),
        (BUILD + "--map Contempt", "map: got 'Contempt', expected NAME=EMOTION"),
        (BUILD + "--map Contempt=Othr", "map: got Contempt=Othr, expected one of Neutral"),
        (BUILD + "--label_set none", "label_set"),
        (BUILD + "--require au", "require='au'"),
        (BUILD + "--fold 2", "expected one for every video"),
        (BUILD + "--margin nan", "margin: got nan, expected 0 to 1"),
        (BUILD + "--min_confidence 7", "min_confidence: got 7.0, expected 0 to 1"),
        (BUILD + "--seed -1", "seed: got -1"),
        (BUILD + "--every 0", "every: got 0"),
        (BUILD + "--landmark_cache {folder}/a_file/cache --landmarks detector", "a_file"),
        (CAPTIONS + "--dataset {folder}/nowhere", "dataset: there is no folder"),
        (CAPTIONS + "--dataset {folder}", "dataset: "),
        (CAPTIONS + "--dataset {folder}/damaged", "dataset: "),
        (CAPTIONS + "--writer chat --model unheard-of --budget 1", "budget: the price of 'unheard-of'"),
        (CAPTIONS + "--writer chat --budget -1", "budget"),
        (CAPTIONS + "--writer chat --concurrency 0", "concurrency"),
        (CAPTIONS + "--writer chat --price 1 -1", "price"),
        (CAPTIONS + "--writer chat", "OPENAI_API_KEY"),
        (CAPTIONS + "--out {folder}/a_file/below", "a_file"),
    ],
)
def test_a_wrong_option_is_named(server, pictures, tmp_path, command, message):
    run = server.run(f"examples/{command}".format(folder=pictures, out=tmp_path / "out").split())
    assert run.returncode in (1, 2) and message in run.output and "Traceback" not in run.output, run.output
    assert command.startswith(CAPTIONS) or not (tmp_path / "out").exists()


def test_near_identical_images_are_dropped_only_when_asked_or_for_the_papers_counts():
    parse = runpy.run_path(str(ROOT / "examples" / "build_dataset.py"))["parse"]
    near = {extra: parse(["own", "a", "b", *extra.split()]).near for extra in ("", "--paper", "--paper --near keep")}
    assert near == {"": "keep", "--paper": "drop", "--paper --near keep": "keep"}
