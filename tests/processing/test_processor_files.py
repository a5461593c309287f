"""A damaged processor_config.json or tokenizer file: the processor loads, or an error says what is wrong with it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processing_mf2 import MF2ImageProcessor, MF2Processor, build_tokenizer


FILES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
VALUES: tuple[Any, ...] = (None, True, -1, 2.5, float("nan"), "words", [], [1, "a"], {}, {"a": [1]})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    settings = {"face_alignment_kwargs": {"device": "cpu"}, "size": {"height": 32, "width": 32}}
    MF2Processor(MF2ImageProcessor(**settings), build_tokenizer(), au_thresholds=[0.5] * 12).save_pretrained(folder)
    return folder


def _places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where a value stands, the outermost last; of long lists and of the vocabulary the beginning."""
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(children)[:12]:
        yield from _places(value, (*path, key))
    yield path


def _changed(content: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    content = content.copy()
    content[path[0]] = _changed(content[path[0]], path[1:], value)
    return content


@pytest.mark.parametrize("file", FILES)
def test_a_value_of_another_type_loads_or_is_named(checkpoint: Path, file: str) -> None:
    original = (checkpoint / file).read_text()
    content, unnamed, tried = json.loads(original), [], 0
    try:
        for path in _places(content):
            for value in VALUES:
                (checkpoint / file).write_text(json.dumps(_changed(content, path, value)))
                tried += 1
                try:
                    MF2Processor.from_pretrained(checkpoint)
                except (ValueError, TypeError, OSError) as error:
                    names = (*(str(key) for key in path), file.removesuffix(".json"), "tokenizer")
                    if not any(name in str(error) for name in names):
                        unnamed.append((path, value, repr(error)))
                except BaseException as error:
                    unnamed.append((path, value, repr(error)))
    finally:
        (checkpoint / file).write_text(original)
    assert tried > 100 and not unnamed, f"{len(unnamed)} of {tried}: " + "\n".join(map(str, unnamed[:200]))


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("processor_config.json", "[" * 100_000, "processor_config.json"),
        ("tokenizer_config.json", '{"model_max_length": "1", ', "model_max_length"),
        ("tokenizer_config.json", '{"model_max_length": [null], ', "model_max_length"),
        ("tokenizer_config.json", '{"model_max_length": -1, ', "model_max_length"),
    ],
)
def test_what_would_fail_only_later_is_named(checkpoint: Path, file: str, text: str, named: str) -> None:
    original = (checkpoint / file).read_text()
    try:
        rest = original.replace('"model_max_length"', '"other"').removeprefix("{")
        (checkpoint / file).write_text(text + rest if text.endswith(", ") else text)
        with pytest.raises(ValueError, match=named):
            MF2Processor.from_pretrained(checkpoint)
    finally:
        (checkpoint / file).write_text(original)


def test_a_missing_vocabulary_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises((ValueError, OSError), match=r"tokenizer\.json"):
        MF2Processor.from_pretrained(folder)
