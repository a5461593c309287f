"""A store that was written is read row by row, and a damaged one is said to be so."""

import json

import pytest
import torch
from safetensors.torch import save
from torch.utils.data import DataLoader

from modeling_mf2.dfn.states import (
    StaleStoreError,
    StateStore,
    StoredExamples,
    checksum,
    collate_stored,
    shard_name,
    write_file,
)


@pytest.fixture
def store(tmp_path):
    """5 images, 2 views, 4 rows a shard."""
    rows = torch.arange(10, dtype=torch.float16)[:, None, None] + torch.zeros(10, 1, 3)
    for number, start in enumerate((0, 4, 8)):
        write_file(tmp_path / shard_name(number), save({"last_emo": rows[start : start + 4].contiguous()}))
    write_file(tmp_path / "shared.safetensors", save({"visual_emo.0": torch.ones(1, 3, dtype=torch.float16)}))
    manifest = {"identity": {"images": 5, "views": 2, "backbone": "a"}, "shard_rows": 4}
    manifest["checksums"] = {path.name: checksum(path) for path in tmp_path.glob("*.safetensors")}
    (tmp_path / "store.json").write_text(json.dumps(manifest))
    return StateStore(tmp_path)


def test_rows_come_in_any_order_across_shards(store):
    states = store.batch([9, 0, 4, 0])
    assert states["last_emo"][:, 0, 0].tolist() == [9, 0, 4, 0] and states["last_emo"].dtype == torch.float32
    assert torch.equal(states["visual_emo.0"], torch.ones(1, 3))
    with pytest.raises(IndexError, match="expected 0 to 9"):
        store.batch([10])


def test_a_loader_gets_batches_with_their_labels_and_both_views(store):
    examples = StoredExamples(store, {"emotion_labels": torch.arange(5)})
    seen = set()
    for _ in range(20):
        for batch in DataLoader(examples, 2, shuffle=True, collate_fn=collate_stored):
            rows = batch["states"]["last_emo"][:, 0, 0].long()
            assert torch.equal(rows % 5, batch["emotion_labels"])
            seen |= set((rows // 5).tolist())
    assert seen == {0, 1}
    still = StoredExamples(store, {"emotion_labels": torch.arange(5)}, draw_views=False)
    assert still[3]["states"]["last_emo"][0, 0, 0] == 3
    with pytest.raises(ValueError, match=r"got {'au_labels': 4} rows, expected 5"):
        StoredExamples(store, {"au_labels": torch.zeros(4, 2)})


def test_a_stale_store_says_what_differs(store):
    with pytest.raises(StaleStoreError, match=r"of another backbone \(backbone: stored a, now b\).*rebuild=True"):
        StateStore(store.folder, {"images": 5, "views": 2, "backbone": "b"})


@pytest.mark.parametrize("name", [shard_name(1), "store.json", "shared.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "lost"])
def test_a_damaged_store_is_no_store(store, name, harm):
    path = store.folder / name
    content = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=name):
        StateStore(store.folder)


@pytest.mark.parametrize("name", [shard_name(2), "shared.safetensors"])
def test_one_flipped_bit_is_found_before_the_file_is_read(store, name):
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 4  # of a number: the header and the size stay as they were
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{name}: checksum: got .* expected .*rebuild"):
        StateStore(store.folder).batch([9])
    if name != "shared.safetensors":
        assert StateStore(store.folder).batch([0])["last_emo"].isfinite().all()


@pytest.mark.parametrize("value", [None, True, "x", 1.5, -1, 0, [], {}, "missing"])
@pytest.mark.parametrize("field", ["identity", "identity.images", "identity.views", "shard_rows", "checksums", ""])
def test_a_header_of_wrong_types_names_its_file_and_field(store, field, value):
    path = store.folder / "store.json"
    manifest = json.loads(path.read_text())
    owner = manifest["identity"] if "." in field else manifest
    if not field:
        manifest = value
    elif value == "missing":
        del owner[field.rpartition(".")[2]]
    else:
        owner[field.rpartition(".")[2]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(OSError, match=r"store.json: |: checksum: ") as raised:
        StateStore(store.folder).batch([0])
    assert (field or "identity").rstrip("s") in str(raised.value) and "rebuild" in str(raised.value)
