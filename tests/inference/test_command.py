"""The command as its users meet it: what it prints, what it writes, and the number it ends with."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from analysis_media import FakeCamera, FakeDetector, embedded, face_at, write_faces, write_video

from mf2face.inference.cli import main


ROOT = Path(__file__).parents[2]


def test_an_image_on_the_screen_names_every_figure_the_model_and_the_landmarks(tmp_path: Path, capsys) -> None:
    (path,) = write_faces(tmp_path, 1)
    assert main([str(path), "--aligned"], model=embedded()) == 0
    shown = capsys.readouterr()
    for words in ("AU12 lip corner puller", "threshold", "Happiness", "face 0"):
        assert words in shown.out
    for words in ("mf2-tiny-rendered", "trained on synthetic", "template", "1 image looked at, 1 face"):
        assert words in shown.err


def test_a_folder_with_bad_files_ends_with_one_and_says_why(tmp_path: Path, capsys) -> None:
    write_faces(tmp_path / "in", 2)
    (tmp_path / "in" / "zero.jpg").touch()
    (tmp_path / "in" / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    arguments = [str(tmp_path / "in"), str(tmp_path / "gone.png"), "--aligned", "-o", str(tmp_path / "out.csv")]
    assert main(arguments, model=embedded()) == 1
    told = capsys.readouterr().err
    assert all(words in told for words in ("left out, 4 times", "zero.jpg", "pipe.mp4", "text.png", "gone.png"))
    with open(tmp_path / "out.csv") as file:
        assert [Path(row["input"]).name for row in csv.DictReader(file)] == ["face-000.png", "face-001.png"]
    about = json.loads((tmp_path / "out.csv.about.json").read_text())
    assert about["left_out"] == 4 and about["finished"] and about["settings"]["landmarks"] == "template"
    assert main(arguments, model=embedded()) == 1  # goes on, and still says what it cannot read
    assert "2 inputs stood in" in capsys.readouterr().err
    only_bad = [str(tmp_path / "in" / "zero.jpg"), "--aligned"]
    assert main(only_bad, model=embedded()) == 3


def test_lines_on_the_standard_output_are_nothing_but_rows(tmp_path: Path, capsys) -> None:
    video = write_video(tmp_path / "v.avi", 6)
    detector = FakeDetector([[face_at(5, 5)], [], [face_at(6, 5), face_at(50, 20)]])
    assert main([str(video), "--every", "2", "--format", "csv"], model=embedded(), detector=detector) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["frame"], row["face_id"]) for row in rows] == [("0", "0"), ("2", "NaN"), ("4", "0"), ("4", "1")]
    assert main([str(video), "--fps", "5", "--format", "jsonl", "--quiet", "--aligned"], model=embedded()) == 0
    shown = capsys.readouterr()
    assert [json.loads(line)["frame"] for line in shown.out.splitlines()] == [0, 2, 4] and not shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "got no input"),
        (["gone.png", "--aligned"], 2, "there is no gone.png"),
        (["--camera", "97", "--aligned", "-o", "cam.csv"], 2, "camera 97: could not be opened"),
        ([".", "--aligned", "--every", "0"], 2, "every: got 0"),
        ([".", "--aligned", "--thresholds", "7"], 2, "thresholds"),
        ([".", "--aligned", "--format", "parquet"], 2, "-o FILE.parquet"),
        ([".", "--aligned", "-o", "a.txt"], 2, "'.txt'"),
        ([".", "--landmarks", "gone.csv"], 2, "gone.csv could not be read"),
        ([".", "--aligned", "--model", "/no/such/model"], 2, "/no/such/model"),
        ([".", "--aligned", "-o", "/proc/no/out.csv"], 4, "cannot be written"),
        ([".", "--aligned"], 3, "no image or video in this folder"),
        (["a", "--occlusion"], 2, "--why FOLDER"),
        (["a", "--picture", "rows.csv"], 2, "a file of rows alone"),
        (["--picture", "gone.csv"], 2, "gone.csv could not be read"),
        (["--picture", "gone.txt"], 2, "'.txt'"),
        ([".", "--aligned", "--why", "/proc/no"], 4, "pictures: /proc/no cannot be written"),
    ],
)
def test_what_cannot_be_ends_with_its_number_and_a_sentence(arguments, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        ended = main(arguments, model=None if "--model" in arguments else embedded())
    except SystemExit as stop:
        ended = stop.code
    told = capsys.readouterr().err
    assert ended == code and said in told and "Traceback" not in told and not list(tmp_path.iterdir())


def test_ctrl_c_and_a_kill_keep_the_rows_and_end_with_their_number(tmp_path: Path, capsys) -> None:
    video = write_video(tmp_path / "v.avi", 12)
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):

        class Interrupted(FakeDetector):
            def detect(self, images):
                if self.seen >= 8:
                    os.kill(os.getpid(), self.sent)
                    time.sleep(1)
                return super().detect(images)

        Interrupted.sent = sent
        detector = Interrupted([[face_at(5, 5)]] * 12)
        out = tmp_path / f"{code}.csv"
        assert main([str(video), "-o", str(out), "--batch_size", "4"], model=embedded(), detector=detector) == code
        with open(out) as file:
            frames = [int(row["frame"]) for row in csv.DictReader(file)]
        # Faces are found a chunk ahead of the model, which may have answered one chunk or two.
        assert frames in (list(range(4)), list(range(8)))
        assert "the same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_same_pictures_by_another_name_are_not_done_again(tmp_path: Path, capsys, monkeypatch) -> None:
    write_faces(tmp_path / "in", 2)
    monkeypatch.chdir(tmp_path)
    for name in ("in", "./in/", str(tmp_path / "in")):
        assert main([name, "--aligned", "-o", "rows.csv"], model=embedded()) == 0
        assert len(Path("rows.csv").read_text().splitlines()) == 3
    assert "2 inputs stood in rows.csv already" in capsys.readouterr().err


def test_ctrl_c_is_how_a_camera_s_run_ends(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera(10**6))

    class Enough(FakeDetector):
        def detect(self, images):
            if self.seen > 10:
                raise KeyboardInterrupt
            return super().detect(images)

    assert main(["--camera"], model=embedded(), detector=Enough([[face_at(9, 9, 30)]] * 9)) == 0
    shown = capsys.readouterr()
    assert "camera:0" in shown.out and "stopped before" not in shown.err


def test_the_command_explains_itself_and_its_exit_codes_without_torch() -> None:
    script = "import sys; from mf2face.inference.cli import main\n"
    script += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "False"
    codes = re.findall(r"^  (\d+)", done.stdout.partition("exit codes:")[2], re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "4", "130"], "those that the tests above meet"


def test_names_that_are_not_text_are_written_wherever_they_go(tmp_path: Path) -> None:
    (face,) = write_faces(tmp_path / "in", 1)
    face.rename(os.fsdecode(os.fsencode(tmp_path) + b"/in/\xff=1.png"))
    script = "import sys; from mf2face.inference.cli import main\nfor format in ('table', 'csv', 'jsonl'):\n"
    script += "    assert main([sys.argv[1], '--aligned', '--format', format, '--quiet']) == 0"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "in")], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\xff=1.png" in done.stdout and b"\\udcff=1.png" in done.stdout
