"""A mistake on the command line is one sentence with an exit code; a defect of the code keeps its traceback."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from mf2face.command_line import run_as_command


ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "model_cards" / "mf2-tiny-rendered"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("views: got 0,\n  expected 1"), 2),
        (FileNotFoundError(2, "No such file or directory", "faces"), 2),
        (StrictDataclassFieldValidationError("hidden_size", TypeError("got 'wide'")), 2),
        (OSError(28, "No space left on device"), 1),
        (FloatingPointError("loss is nan"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_a_code(error, code, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    with pytest.raises(SystemExit) as stop:
        run_as_command(fail)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == code and len(lines) == 1 and lines[0].startswith("train.py: ")
    if code != 130:
        assert str(error).split()[-1] in lines[0]
        monkeypatch.setenv("MF2_TRACEBACK", "1")
        with pytest.raises(type(error)):
            run_as_command(fail)


def test_a_defect_of_the_code_is_not_hidden_and_success_is_0():
    with pytest.raises(AttributeError):
        run_as_command(lambda: None.nothing)
    with pytest.raises(SystemExit) as stop:
        run_as_command(lambda: {"a": 1})
    assert stop.value.code == 0


def run(script: str, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr of a script that is given something wrong."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *argv])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    printed = capsys.readouterr().err
    assert stop.value.code in (1, 2) and "Traceback" not in printed
    return printed.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "argv", "names"),
    [
        ("train.py", "--lerning_rate 1", "lerning_rate"),
        ("train.py", "--learning_rate fast", "learning_rate"),
        ("train.py", "--task dance", "task"),
        ("train.py", "--model_size huge", "model_size"),
        ("train.py", "--label_set nobody", "label_set"),
        ("train.py", "--task dfn --adapter_options bottleneck=wide", "bottleneck"),
        ("train.py", "--save_strategy epoch --eval_strategy no", "strategy"),
        ("train.py", "--vision_name_or_path no/such/tower.safetensors", "no/such/tower.safetensors"),
        ("train.py", "--style oil", "style"),
        ("examples/quickstart.py", "--checkpoint no/such/folder", "no/such/folder"),
        ("examples/deploy.py", "--check --model no/such/folder", "no/such/folder"),
        ("examples/deploy.py", "--port many", "port"),
        ("examples/write_adapter.py", "--method ia4", "method"),
        ("examples/write_adapter.py", "--faces 0", "faces"),
        ("examples/add_label_set.py", "--faces 0", "faces"),
        ("examples/finetune_on_csv.py", "--folder no/such/folder", "no/such/folder"),
        ("examples/finetune_on_csv.py", "--landmarks guess", "landmarks"),
        ("examples/synthetic_gallery.py", "--size 0", "size"),
        ("examples/synthetic_gallery.py", "--subjects 0", "subjects"),
        ("examples/export_model.py", "--model no/such/folder", "no/such/folder"),
        ("examples/export_model.py", "--faces 0", "faces"),
        ("examples/release_checkpoint.py", "no/such/run", "released"),
        ("examples/release_checkpoint.py", "no/such/run out", "no/such/run"),
    ],
)
def test_a_wrong_option_is_named(script, argv, names, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "True"] if script == "train.py" else []
    assert names in run(script, [*argv.split(), *out], monkeypatch, capsys)


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("config.json", {"region_grid": "wide"}, "region_grid"),
        ("config.json", "cut", "config.json"),
        ("model.safetensors", "cut", "model.safetensors"),
        ("model.safetensors", "gone", "safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_named(file, content, names, monkeypatch, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(RELEASED, model)
    if content == "gone":
        (model / file).unlink()
    elif content == "cut":
        (model / file).write_bytes((model / file).read_bytes()[:500])
    else:
        (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | content))
    argv = ["--task", "evaluate", "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    assert names in run(
        "train.py", [*argv, "--style", "drawn", "--num_images", "80", "--use_cpu", "True"], monkeypatch, capsys
    )
