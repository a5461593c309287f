"""The command line: sensible without a word, the paper's settings at the paper's size, everything to be overruled."""

import re

import pytest

from mf2face.training import arguments as arguments_mf2
from mf2face.training.arguments import parse_arguments


def test_without_a_word_it_is_the_tiny_journey():
    ours, training = parse_arguments([])
    assert (ours.task, ours.model_size, ours.dataset, ours.branches) == ("pretrain", "tiny", "synthetic", "both")
    assert training.weight_decay == 0.05 and training.load_best_model_at_end


@pytest.mark.parametrize("size", ["base", "giant"])
def test_the_papers_sizes_have_the_papers_settings(size):
    _, training = parse_arguments(["--model_size", size])
    found = (training.learning_rate, training.warmup_steps, training.num_train_epochs)
    assert found == (1e-4, 2000, 30) and training.per_device_train_batch_size == 56


def test_what_is_given_overrules():
    ours, training = parse_arguments(["--model_size", "base", "--learning_rate", "3e-5", "--branches", "au"])
    assert training.learning_rate == 3e-5 and ours.branches == "au"


def test_a_missing_logger_is_named_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(arguments_mf2, "is_tensorboard_available", lambda: False)
    with pytest.raises(ImportError, match="Run `pip install tensorboard`"):
        parse_arguments(["--report_to", "tensorboard"])
    monkeypatch.setattr(arguments_mf2, "is_tensorboard_available", lambda: True)
    assert parse_arguments(["--report_to", "tensorboard"])[1].report_to == ["tensorboard"]


@pytest.mark.parametrize("argv", [["--task", "dance"], ["--branches", "none"], ["--no_such_thing", "1"]])
def test_mistakes_end_with_usage(argv, capsys):
    with pytest.raises((SystemExit, ValueError)) as error:
        parse_arguments(argv)
    assert argv[-1] in capsys.readouterr().err + str(error.value)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--model vl_fau --views 3", "views: got 3, which --model vl_fau --task full does not use; expected 1"),
        ("--model vl_fau --use_captions False", "use_captions: got False"),
        ("--model hsemotion --landmarks template", "landmarks: got 'template'"),
        ("--model hsemotion --caption_set au", "caption_set: got 'au'"),
        ("--model exp_blip --task caption --augment True", "augment: got True, which --model exp_blip --task caption"),
        ("--model me_graph_au --task dfn", "expected full or evaluate"),
        ("--task caption", "expected exp_blip"),
        ("--task dfn --model_name_or_path /no/such/folder", "model_name_or_path: there is no folder or file /no/such"),
    ],
)
def test_what_a_model_would_not_heed_is_refused(argv, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_arguments(argv.split())
    assert parse_arguments(["--model", "vl_fau", "--task", "evaluate", "--use_captions", "False"])
    assert parse_arguments(["--model", "exp_blip", "--task", "caption", "--vision_name_or_path", "none"])
