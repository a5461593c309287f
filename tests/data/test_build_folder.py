import json

import numpy as np
import pytest
from datasets import Dataset

from mf2face.data.build.mfa import Shard, plan_before, read_notes, remove_work, same_plan, write_notes, write_table
from mf2face.data.corpora.label_files import CorpusError


SHARD = Shard("train", 0, 2, np.arange(3))
PLAN = {"plan": "abc", "options": {"shard_rows": 3}}


def write_shard(work, rows=3):
    same_plan(work, PLAN)
    found = Dataset.from_dict({"row": list(range(rows))})
    write_table(work / "result" / "data" / SHARD.file, found.data.table, found.features)
    write_notes(work, SHARD, np.zeros((3, 2), np.uint8), np.arange(3), [])


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_finished_shard_is_known_and_a_cut_one_is_not(work):
    write_shard(work)
    assert read_notes(work, SHARD)["rows"] == [0, 1, 2]
    write_shard(work, rows=2)
    assert read_notes(work, SHARD) is None
    write_shard(work)
    notes = work / "notes" / f"{SHARD.file}.json"
    notes.write_text(notes.read_text()[:-9])
    assert read_notes(work, SHARD) is None


def test_shards_of_an_unknown_plan_are_removed_and_those_of_another_are_refused(work):
    write_shard(work)
    same_plan(work, PLAN)
    assert read_notes(work, SHARD) is not None
    with pytest.raises(ValueError, match=r"unfinished build of other options or labels .shard_rows: 3"):
        same_plan(work, {"plan": "abd", "options": {"shard_rows": 4}})
    (work / "plan.json").unlink()
    same_plan(work, PLAN)
    assert read_notes(work, SHARD) is None and not list(work.rglob("*.parquet"))
    remove_work(work)
    assert not work.exists()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"options": {}})])
def test_a_damaged_plan_is_named(work, text):
    assert plan_before(work) is None
    (work / "plan.json").write_text(text)
    with pytest.raises(CorpusError, match=r"plan.json: got .*, expected the plan of a build. Remove .*work"):
        same_plan(work, PLAN)
