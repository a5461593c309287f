"""What a run tells of itself: what it started from and with which settings, and nothing of where it ran."""

import json
from pathlib import Path

import pytest
import torch

from mf2face.training.arguments import parse_arguments
from mf2face.training.cards import card_data, run_facts


def test_facts_name_what_it_started_from_and_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    arguments, training = parse_arguments(
        [
            *("--output_dir", str(tmp_path / "out"), "--use_cpu", "True", "--vision_name_or_path"),
            *(str(tmp_path / "tower"), "--text_name_or_path", "google-bert/bert-base-uncased", "--max_steps", "7"),
            *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "3"),
        ]
    )
    facts = run_facts(arguments, training, {"cpu_seconds": 812.3}, synthetic=True)
    assert str(tmp_path) not in json.dumps(facts) and facts["name"] == "out"
    assert facts["started_from"] == {"vision tower": "tower", "text": "google-bert/bert-base-uncased"}
    assert facts["base_models"] == ["google-bert/bert-base-uncased"]
    assert facts["settings"]["batch size"] == 24 and facts["settings"]["steps"] == 7
    assert "epochs, at most" not in facts["settings"] and facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("options", "pipeline"),
    [
        ("--model exp_blip --task pretrain", "image-feature-extraction"),
        ("--model exp_blip --task caption", "image-to-text"),
        ("--model exp_blip --task full", "image-classification"),
        ("--task pretrain", "image-classification"),
        ("--task tower", "image-feature-extraction"),
    ],
)
def test_the_hub_is_told_what_can_be_asked_of_a_checkpoint(tmp_path: Path, options: str, pipeline: str) -> None:
    arguments, training = parse_arguments(["--output_dir", str(tmp_path), "--use_cpu", "True", *options.split()])
    facts = run_facts(arguments, training, {"cpu_seconds": 1.0}, synthetic=True)
    assert card_data(facts, {}).pipeline_tag == pipeline and facts["cost"] == {"cpu_seconds": 1.0}
