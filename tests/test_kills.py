"""Killed at every file operation and at random times, then started again: the same files with the same content, none
lost, doubled or left behind."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chat_server import LoopbackChat
from kill_jobs import JOBS, PICTURES, PRELOAD
from kill_points import KillServer, Run


pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

RANDOM_KILLS = 10
# Hold times, or how often a run was begun: only their names are compared.
CHANGING = (".about.json", "state.json", "training_args.bin", "cost.json", "run/README.md", "metrics.json", ".png")
DONE = "is there already"


class Place(NamedTuple):
    server: KillServer
    chat: LoopbackChat
    root: Path


class Trial:
    """One job in a folder that is made anew for every run that begins."""

    def __init__(self, place: Place, name: str) -> None:
        self.server, self.name = place.server, name
        self.folder, self.inputs = place.root / "work", place.root / "inputs"
        shutil.rmtree(self.inputs, ignore_errors=True)
        self.inputs.mkdir()
        self.write_inputs()
        self.begin()
        self.undisturbed = self.run()
        self.expected = self.contents()

    def write_inputs(self) -> None:
        if self.name.startswith("mf2"):
            from analysis_media import write_faces, write_video

            write_faces(self.inputs, 3)
            write_video(self.inputs / "v.avi", 2)
        elif self.name.startswith(("build", "captions")):
            write_pictures(self.inputs)
        if self.name.startswith("captions"):
            self.make_inputs("build", "out/mfa")
        elif self.name in ("vision store", "train"):  # the drawn faces, whose cache is a job of its own
            self.make_inputs(self.name, "in")

    def make_inputs(self, job: str, folder: str) -> None:
        self.begin()
        self.run(job)
        shutil.rmtree(self.inputs)
        (self.folder / folder).rename(self.inputs)

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "out").mkdir(parents=True)
        shutil.copytree(self.inputs, self.folder / "in")

    def run(self, name: str = "", *, fails: bool = False, **kill: float) -> Run:
        run = self.server.run(["tests/kill_jobs.py", name or self.name, str(self.folder)], timeout=900, **kill)
        assert kill or fails or run.returncode == 0, run.output[-3000:]
        return run

    def contents(self) -> dict[str, Any]:
        """By name; a folder's, and that of a file that changes, without content."""
        paths = (path for path in sorted(self.folder.rglob("*")) if path.suffix != ".lock")
        return {str(path.relative_to(self.folder)): _content(path) for path in paths}

    def differences(self, kills: list[dict[str, float]]) -> tuple[list[str], int]:
        """What differs from the undisturbed run after some kills and a repeated run; how many kills met one."""
        self.begin()
        runs = [self.run(**kill) for kill in kills]
        left = sorted({str(path.relative_to(self.folder)) for path in self.folder.rglob("*")} - self.expected.keys())
        again, expected = self.run(fails=True), self.expected
        found, met = self.contents(), sum(run.killed for run in runs)
        if again.returncode and DONE not in again.output:
            wrong = [f"the repeated run ended with {again.returncode}: {again.output[-600:]}"]
        else:
            wrong = [f"lost {name}" for name in expected.keys() - found.keys()]
            wrong += [f"left behind {name}" for name in found.keys() - expected.keys()]
            wrong += [f"changed {name}" for name in found.keys() & expected.keys() if found[name] != expected[name]]
        at = f"{kills} after {runs[-1].operations[-1:]}"
        return [f"{at}: {each} (after the kill there was {left})" for each in wrong], met


def write_pictures(folder: Path) -> None:
    """Of people; one picture all but repeats another person's, one is damaged."""
    from PIL import Image

    from mf2face.data.synthetic.faces import draw_example

    lines = ["image,emotion,subject,split"]
    for number in range(PICTURES):
        split = ("train", "train", "train", "test", "val")[number % 5]
        pixels = draw_example(16 * (number if number != 3 else 0), size=64)[0]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{('Fear', 'Anger')[number % 2]},p{number},{split}")
    (folder / "9.png").write_bytes(b"no picture")
    (folder / "labels.csv").write_text("\n".join(lines))


def _content(path: Path) -> Any:
    if path.is_dir() or str(path).endswith(CHANGING):
        return None
    if path.name == "rows.parquet":
        import pyarrow.parquet as pq

        return repr(pq.read_table(path).to_pylist())  # NaN is unequal to itself
    if path.name.startswith("data-") and path.suffix == ".arrow":
        from datasets import Dataset

        return Dataset.from_file(str(path)).to_list()
    if path.suffix == ".sqlite":
        store = sqlite3.connect(path)
        entries = store.execute("SELECT * FROM faces ORDER BY image").fetchall()
        store.close()
        return entries
    if path.name == "journal.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        written = [line for line in lines if line["event"] == "captions"]
        return {line["key"]: (line["id"], line["texts"], line["writer"]) for line in written}
    if path.name in ("run.json", "complete.json"):  # all but the run's cost, and the sizes of files that change
        content = json.loads(path.read_text())
        return {name: content[name] for name in content if name != "cost" and not name.endswith(CHANGING)}
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("kills")
    environment = {"HF_HOME": f"{root}/hub", "XDG_CACHE_HOME": f"{root}/cache", "HF_HUB_OFFLINE": "1"}
    with LoopbackChat(0.01) as chat:
        environment |= {"OPENAI_API_KEY": chat.key, "OPENAI_BASE_URL": chat.url, "no_proxy": "127.0.0.1"}
        with KillServer(PRELOAD, [root / "work"], **environment) as server:
            yield Place(server, chat, root)


@pytest.mark.parametrize("name", sorted(set(JOBS) - {"build of other options"}))
def test_a_killed_run_that_is_repeated_ends_as_if_it_had_not_been_killed(place: Place, name: str) -> None:
    trial, chance = Trial(place, name), random.Random(name)
    count, seconds = len(trial.undisturbed.operations), trial.undisturbed.seconds
    assert count >= 3 and len(trial.expected) >= 3
    points = range(1, count + 1, int(os.environ.get("MF2_KILLS_EVERY", "1")))
    kills = [[{"kill_at": number}] for number in points]
    for number in range(RANDOM_KILLS):  # every third is killed again
        kills.append([{"kill_after": chance.uniform(0.05, 0.9) * seconds} for _ in range(1 + (number % 3 == 0))])
    results = [trial.differences(some) for some in kills]
    wrong, met = [each for differences, _ in results for each in differences], sum(met for _, met in results)
    print(f"{name}: {met} kills ({RANDOM_KILLS} at random times; {count} file operations), {len(wrong)} differences")
    assert not wrong, "\n".join(wrong)
    assert met >= 0.7 * len(kills), "the order of operations may differ, their number hardly"
    assert not list((place.root / "hub").rglob("*.incomplete"))


def test_captions_are_paid_once_and_the_key_is_nowhere(place: Place) -> None:
    trial, chat = Trial(place, "captions by chat"), place.chat
    trial.begin()
    chat.paid.clear()
    runs = [trial.run(kill_after=share * trial.undisturbed.seconds) for share in (0.3, 0.4, 0.5, 0.6)]
    kills = sum(run.killed for run in runs)
    outputs, out = [run.output for run in (*runs, trial.run())], trial.folder / "out"
    rows = len((out / "captions.jsonl").read_text().splitlines())
    assert kills and rows == len(chat.paid)
    assert sum(chat.paid.values()) <= rows + 3 * kills, "only what was under way at a kill may be paid twice"
    for text in [*outputs, *(file.read_bytes().decode("latin1") for file in out.rglob("*") if file.is_file())]:
        assert chat.key not in text
    assert json.loads((out / "journal.jsonl").read_text().splitlines()[0])["event"] == "journal"


def test_rows_are_neither_lost_nor_doubled_by_other_options_after_a_kill(place: Place) -> None:
    """Wherever a build was killed, one with other options is refused or holds each row once."""
    from datasets import Dataset

    trial, refused = Trial(place, "build"), 0
    operations = len(trial.undisturbed.operations)
    for number in range(1, operations + 1, 2 * int(os.environ.get("MF2_KILLS_EVERY", "1"))):
        trial.begin()
        trial.run(kill_at=number)
        other = trial.run("build of other options", fails=True)
        if other.returncode:
            assert "unfinished build of other options" in other.output or DONE in other.output
            refused += 1
            again = trial.run(fails=True)
            assert again.returncode == 0 or DONE in again.output
        files = sorted((trial.folder / "out" / "mfa" / "data").iterdir())
        rows = Dataset.from_parquet([str(file) for file in files], cache_dir=str(place.root / "hub"))
        assert len(rows) == len(set(rows["video"])) == PICTURES - 2, number
        assert len({file.name.split("-of-")[0] for file in files}) == len(files)
    assert 0 < refused < operations / 2 + 1
