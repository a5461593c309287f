"""Builds and captions, killed at each of their file operations and at random times, then started again.

However often a job was killed, the same command ends with what an undisturbed run writes, and leaves nothing else.
"""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pytest
from chat_server import LoopbackChat
from kill_points import KillServer, Run
from PIL import Image

from mf2face.captions.journal import CaptionJournal
from mf2face.data.synthetic.faces import draw_example


pytestmark = pytest.mark.slow

RANDOM_KILLS = 12
PICTURES = 14
PRELOAD = ["mf2face.data.build.mfa", "mf2face.captions.run", "openai", "aiohttp"]
PRELOAD += ["mf2face.data.corpora.read", "mf2face.captions.batch", "mf2face.data.build.landmark_cache"]

FIND_AND_BUILD = """
import sys
import numpy as np
from mf2face.data.build.mfa import BuildOptions, build_mfa
from mf2face.data.build.landmark_cache import LandmarkCache
from mf2face.data.corpora.read import read_corpus
from mf2face.data.build.splits import plan_mfa
from processing_mf2.landmarks import DetectedFace, template_landmarks

class Middle:
    def detect(self, images):
        found = []
        for image in images:
            height, width = image.shape[1:]
            box = np.array([0.0, 0.0, width, height])
            found.append([DetectedFace(box, 0.9, template_landmarks(height, width), np.ones(68))])
        return found

pictures, work = sys.argv[1:]
frames, split = plan_mfa(read_corpus("own", pictures))
options = BuildOptions(shard_rows=4, crop_size=64, skip_unreadable=True)
with LandmarkCache(pictures, Middle(), file=f"{work}/landmarks.sqlite", batch_size=3) as cache:
    build_mfa(frames, split, f"{work}/mfa", options, cache)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of people; one all but repeats another person's, one is damaged."""
    folder = tmp_path_factory.mktemp("kills")
    pictures = folder / "pictures"
    pictures.mkdir()
    lines = ["image,emotion,subject,split"]
    for number in range(PICTURES):
        split = ("train", "train", "train", "test", "val")[number % 5]
        pixels = draw_example(16 * (number if number != 3 else 0), size=64)[0]
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        lines.append(f"{number}.png,{('Fear', 'Anger')[number % 2]},p{number},{split}")
    (pictures / "9.png").write_bytes(b"no picture")
    (pictures / "labels.csv").write_text("\n".join(lines))
    (folder / "find_and_build.py").write_text(FIND_AND_BUILD)
    (folder / "work").mkdir()
    return folder


@pytest.fixture(scope="module")
def chat():
    with LoopbackChat(0.01) as server:
        yield server


@pytest.fixture(scope="module")
def server(folder, chat):
    settings = {"OPENAI_API_KEY": chat.key, "HF_HOME": str(folder / "hf"), "no_proxy": "127.0.0.1"}
    with KillServer(PRELOAD, [folder / "work"], **settings) as started:
        yield started


@pytest.fixture(scope="module")
def built(server, folder):
    run = server.run([*BUILD, str(folder / "pictures"), str(folder / "built"), *BUILD_OPTIONS])
    assert run.returncode == 0, run.output
    return folder / "built"


BUILD, BUILD_OPTIONS = ["examples/build_dataset.py", "own"], ["--landmarks", "template", "--shard_rows", "3"]
BUILD_OPTIONS += ["--skip_unreadable", "--near", "drop"]


@dataclass
class Job:
    """A command, and what of `work` is compared: all names, and the bytes of all files but those that `read` reads."""

    command: list[str]
    work: Path
    read: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    over: str = ""
    """What a restart says that finds the job done already."""

    def start_anew(self) -> None:
        shutil.rmtree(self.work)
        self.work.mkdir()

    def finish(self, server: KillServer) -> dict[str, object]:
        run = server.run(self.command)
        assert run.returncode == 0 or (self.over and self.over in run.output), run.output
        return self.result(run)

    def result(self, run: Run) -> dict[str, object]:
        found = {}
        for path in sorted(self.work.rglob("*")):
            if path.is_file():
                read = next((read for end, read in self.read.items() if path.name.endswith(end)), Path.read_bytes)
                found[str(path.relative_to(self.work))] = read(path)
            else:
                found[str(path.relative_to(self.work))] = "a folder"
        return found


def entries_of(file: Path) -> list[tuple]:
    with sqlite3.connect(file) as store:
        found = store.execute("SELECT * FROM faces ORDER BY image").fetchall()
    store.close()
    return found


def captions_of(file: Path) -> dict[str, object]:
    with CaptionJournal(file) as book:
        return {key: book.captions(key) for key in sorted(book._places)}


def rows_of(file: Path) -> list[dict]:
    return datasets.Dataset.from_file(str(file)).to_list()


def job_of(name: str, folder: Path, chat: LoopbackChat, request: pytest.FixtureRequest) -> Job:
    work, pictures = folder / "work", str(folder / "pictures")
    if name == "build":
        command = [*BUILD, pictures, str(work / "mfa"), *BUILD_OPTIONS]
        return Job(command, work, over="is there already")
    if name == "landmarks":
        command = [str(folder / "find_and_build.py"), pictures, str(work)]
        return Job(command, work, {".sqlite": entries_of}, over="is there already")
    command = ["examples/write_captions.py", "--dataset", str(request.getfixturevalue("built")), "--out", str(work)]
    reads = {".arrow": rows_of, "state.json": lambda file: None, "journal.jsonl": captions_of}
    if name == "chat":
        command += ["--writer", "chat", "--model", "m", "--base_url", chat.url, "--concurrency", "3"]
    return Job(command, work, reads)


@pytest.mark.parametrize("name", ["build", "landmarks", "rule", "chat"])
def test_a_killed_job_ends_as_if_it_had_not_been_killed(name, server, folder, chat, request, record_property):
    job, rng = job_of(name, folder, chat, request), random.Random(name)
    job.start_anew()
    undisturbed = server.run(job.command)
    assert undisturbed.returncode == 0 and undisturbed.operations, undisturbed.output
    expected = job.result(undisturbed)
    assert len(expected) > 3 and not [file for file in expected if ".part" in file or ".old" in file]
    kills = 0
    points = range(1, len(undisturbed.operations) + 1, int(os.environ.get("MF2_KILLS_EVERY", "1")))
    for number in points:
        job.start_anew()
        kills += server.run(job.command, kill_at=number).killed
        found = job.finish(server)
        assert found == expected, (
            f"killed at {number}, {undisturbed.operations[number - 1]}: {differences(found, expected)}"
        )
    assert kills >= 0.8 * len(points), "the order of operations may differ, their number hardly"
    at_random, duration = 0, undisturbed.seconds
    for _ in range(10 * RANDOM_KILLS):
        job.start_anew()
        while (run := server.run(job.command, kill_after=rng.uniform(0.02, 1) * duration)).killed:
            at_random += 1
            if at_random % 3:  # others are killed again
                break
        else:  # it was faster than before
            duration = min(duration, run.seconds)
            continue
        found = job.finish(server)
        assert found == expected, f"killed after {run.seconds} s: {differences(found, expected)}"
        if at_random >= RANDOM_KILLS:
            break
    assert not list((folder / "hf").rglob("*.incomplete"))
    print(f"\n{name}: {kills} kills at {len(undisturbed.operations)} operations, {at_random} at random times")
    assert at_random >= RANDOM_KILLS


def differences(found: dict, expected: dict) -> str:
    lost, left = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    return f"lost {lost}, left {left}, other {[name for name in expected if found.get(name) != expected[name]]}"


def test_captions_are_paid_once_and_the_key_is_nowhere(server, folder, chat, request):
    job = job_of("chat", folder, chat, request)
    durations = []
    for _ in range(2):
        job.start_anew()
        durations.append(server.run(job.command).seconds)
    job.start_anew()
    chat.paid.clear()
    outputs, kills = [], 0
    for share in (0.3, 0.4, 0.5, 0.6):
        run = server.run(job.command, kill_after=share * min(durations))
        kills, outputs = kills + run.killed, [*outputs, run.output]
    outputs.append(server.run(job.command).output)
    rows = len((job.work / "captions.jsonl").read_text().splitlines())
    assert kills and rows == len(chat.paid)
    assert sum(chat.paid.values()) <= rows + 3 * kills, "only what was under way at a kill may be paid twice"
    for text in [*outputs, *(file.read_bytes().decode("latin1") for file in job.work.rglob("*") if file.is_file())]:
        assert chat.key not in text
    assert json.loads((job.work / "journal.jsonl").read_text().splitlines()[0])["event"] == "journal"


def test_rows_are_neither_lost_nor_doubled_by_other_options_after_a_kill(server, folder):
    """Wherever a build was killed, one with other options is refused or holds each row once."""
    job = Job([*BUILD, str(folder / "pictures"), str(folder / "work" / "mfa"), *BUILD_OPTIONS], folder / "work")
    job.start_anew()
    operations = len(server.run(job.command).operations)
    refused = 0
    for number in range(1, operations + 1, 2):
        job.start_anew()
        server.run(job.command, kill_at=number)
        other = server.run([*job.command, "--shard_rows", "5"])
        if other.returncode:
            assert "unfinished build of other options" in other.output or "is there already" in other.output
            refused += 1
            assert server.run(job.command).returncode == 0 or "is there already" in server.run(job.command).output
        files = sorted((job.work / "mfa" / "data").iterdir())
        rows = datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(folder / "hf"))
        assert len(rows) == len(set(rows["video"])) == PICTURES - 2, number
        assert np.unique([file.name.split("-of-")[0] for file in files]).size == len(files)
    assert 0 < refused < operations / 2 + 1
