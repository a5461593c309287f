import re

import pytest

from configuration_mf2.json_files import parse_json, read_json


DAMAGED = {
    "empty": b"",
    "cut": b'{"a": [1',
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_read_is_a_sentence_that_names_the_file(content, tmp_path):
    file = tmp_path / "facts.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: got .*, expected JSON"):
        read_json(file)
    with pytest.raises(ValueError, match=r"^facts\.json, line 3: got "):
        parse_json(content, "facts.json, line 3")


def test_a_file_that_is_not_there_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="facts"):
        read_json(tmp_path / "facts.json")


def test_whole_content_is_returned(tmp_path):
    (tmp_path / "facts.json").write_text('{"ä": [1.5, null]}', encoding="utf-8")
    assert read_json(tmp_path / "facts.json") == parse_json('{"ä": [1.5, null]}', "text") == {"ä": [1.5, None]}
