"""Checkpoints carry the code's version; one from a newer major is loaded, and says so."""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import AutoConfig

import modeling_mf2  # noqa: F401 - registers the Auto classes
from configuration_mf2 import MF2Config, MF2VisionConfig
from configuration_mf2.version import FIELD, VERSION, NewerCheckpointWarning, check_version


def test_one_version_for_the_package_and_for_what_it_writes() -> None:
    assert version("mf2face") == VERSION


@pytest.mark.parametrize("make", [lambda: MF2Config.from_size("tiny"), MF2VisionConfig], ids=["model", "tower"])
def test_a_config_carries_the_version_once_and_forgets_it_when_read(make, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text)[FIELD] == VERSION and text.count(FIELD) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(make()).from_pretrained(tmp_path)
    assert not hasattr(again, FIELD), "what this code saves next is of this code's version"
    assert again.to_dict() == make().to_dict()


@pytest.mark.parametrize("load", [MF2Config.from_pretrained, AutoConfig.from_pretrained], ids=["own", "auto"])
def test_a_newer_major_is_named_and_loads(load, tmp_path: Path) -> None:
    MF2Config.from_size("tiny").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    newer = f"{int(VERSION.split('.')[0]) + 1}.2.0"
    (tmp_path / "config.json").write_text(json.dumps({**content, FIELD: newer}))
    said = rf"{tmp_path.name}: written by version {newer} .* this is {VERSION}"
    with pytest.warns(NewerCheckpointWarning, match=said) as caught:
        config = load(tmp_path)
    assert len(caught) == 1
    assert json.loads(config.to_json_string())[FIELD] == VERSION


def test_the_same_major_an_older_one_and_none_are_silent() -> None:
    major = VERSION.split(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for saved in (None, "0.0.1", f"{major}.99.0", VERSION):
            check_version(saved, "here")
    with pytest.warns(NewerCheckpointWarning, match="here: written by version unknown"):
        check_version("unknown", "here")
