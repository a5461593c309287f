"""Training from stored outputs is training, and a stale, foreign or damaged store is never read."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import shake, tiny_batch, tiny_config
from peft import get_peft_model
from torch.utils.data import DataLoader

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.files import locked
from mf2face.training.stores import (
    StaleStoreError,
    StateStore,
    StoredExamples,
    StoreOptions,
    collate_stored,
    frozen_states,
    load_or_store,
    shard_name,
    store_identity,
)
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from modeling_mf2.dfn.states import compute_states
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


ROWS = 12
IMAGES, LABELS = ("pixel_values", "landmarks"), ("au_labels", "emotion_labels")


def build(**fields):
    torch.manual_seed(0)
    adapter = DFNConfig(**{"bottleneck": 4, "layers": 3, "pathways": ["visual"], **fields})
    return get_peft_model(shake(MF2ForFaceAnalysis(tiny_config())), adapter)


@pytest.fixture
def batch():
    full = tiny_batch(tiny_config(), rows=ROWS)
    return {name: full[name] for name in (*IMAGES, *LABELS)}


def rows_of(batch):
    return [{name: batch[name][row] for name in IMAGES} for row in range(len(batch["pixel_values"]))]


@pytest.fixture
def examples(batch):
    return rows_of(batch)


@pytest.fixture
def flipped(examples):
    return [{**row, "pixel_values": row["pixel_values"].flip(-1)} for row in examples]


class Counted(list):
    """Examples that keep which were asked for, and may be interrupted at one."""

    def __init__(self, examples, stop_at=None):
        super().__init__(examples)
        self.asked, self.stop_at = [], stop_at

    def __getitem__(self, row):
        self.asked.append(row)
        if row == self.stop_at:
            raise KeyboardInterrupt
        return super().__getitem__(row)


def some_of(batch, names, rows=slice(None)):
    return {name: batch[name][rows] for name in names}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def store_of(model, examples, folder, **options):
    return frozen_states(model, examples, folder, **{"data": "faces", "batch_size": 4, "shard_rows": 8, **options})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": "all"},
        {"pathways": ["visual", "vision"], "readout": "mix"},
        {"pathways": ["visual", "vision"], "readout": "mix", "pooling": {"visual": "all", "vision": 2}},
        {"layers": [0]},
    ],
    ids=["pooled", "tokens", "vision", "groups", "embedding"],
)
def test_full_precision_states_give_the_same_gradients_in_every_bit(batch, examples, tmp_path, fields):
    model = build(init_weights=False, **fields).train()
    store = store_of(model, examples, tmp_path / "store", dtype="float32")
    with_images = model(**some_of(batch, batch, slice(4, 8)))
    with_images.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    from_store = model(states=store.batch(range(4, 8)), **some_of(batch, LABELS, slice(4, 8)))
    assert torch.equal(from_store.loss, with_images.loss)
    assert torch.equal(from_store.emotion_logits, with_images.emotion_logits)
    from_store.loss.backward()
    found = gradients(model)
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_states_give_nearly_the_same_gradients(batch, examples, tmp_path):
    model = build(init_weights=False).train()
    store, found = store_of(model, examples, tmp_path / "store"), []
    for states in (compute_states(model, some_of(batch, IMAGES)), store.batch(range(ROWS))):
        model(states=states, **some_of(batch, LABELS)).loss.backward()
        found.append(torch.cat([gradient.flatten() for gradient in gradients(model).values()]))
        model.zero_grad()
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-3


def test_an_epoch_from_the_store_asks_no_backbone_and_states_alike_are_stored_once(examples, tmp_path, monkeypatch):
    model = build()
    store = store_of(model, examples, tmp_path / "store")
    assert store.shared["visual_emo.0"].shape == (1, 32) and store.shared["visual_au.0"].shape == (3, 32)
    assert store.shards[0]["visual_au"].shape == (8, 3, 2, 32)  # images, AUs, layers without the first, width
    base = model.get_base_model()
    for module in (base.mf2.vision, base.mf2.emo_vl.qformer, base.mf2.au_vl.qformer):
        monkeypatch.setattr(module, "forward", lambda *_, **__: pytest.fail("the backbone was asked"))
    assert model(states=store.batch([0, 5])).au_logits.shape == (2, 3)
    store_of(model, examples, tmp_path / "store")  # opened, not built


def test_without_an_adapter_the_heads_alone_can_be_trained_from_a_store(batch, examples, tmp_path):
    base = build().unload()
    store = store_of(base, examples, tmp_path / "store", dtype="float32")
    with torch.no_grad():
        expected = base.eval()(**some_of(batch, IMAGES, slice(4))).au_logits
        assert torch.equal(base(states=store.batch(range(4))).au_logits, expected)


def test_a_store_of_anything_else_is_refused_and_rebuilt_on_request(examples, tmp_path):
    model, folder = build(), tmp_path / "store"
    given = {"processor": {"size": 64}}
    store_of(model, examples, folder, **given)
    before = content(folder)
    other_layers, other_config, other_weights = build(layers=[1]), build(), build()
    other_config.config.region_window = 0.5
    with torch.no_grad():
        other_weights.get_base_model().mf2.emo_vl.queries[0, 0, 0] += 1e-3
    for other, options, what in (
        (model, {"data": "others"}, "data"),
        (model, {"processor": {"size": 96}}, "processor"),
        (model, {"dtype": "float32"}, "dtype"),
        (model, {"more_views": [examples]}, "views"),
        (other_layers, {}, "read"),
        (other_config, {}, "config"),
        (other_weights, {}, "backbone"),
    ):
        with pytest.raises(StaleStoreError, match=f"another .*{what}: stored"):
            store_of(other, examples, folder, **given | options)
    model.config.au_thresholds = [0.4] * len(model.config.action_units)  # tuned after training: of no matter
    store_of(model, examples, folder, **given)
    assert content(folder) == before
    store_of(other_weights, examples, folder, **given, rebuild=True)
    store_of(other_weights, examples, folder, **given)


def test_training_does_not_make_a_store_stale():
    model = build(heads="all")
    before = store_identity(model, ROWS, 1, "faces", None, StoreOptions())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert store_identity(model, ROWS, 1, "faces", None, StoreOptions()) == before


def test_an_interrupted_build_goes_on_where_it_was(examples, tmp_path):
    model, rows = build(), Counted(examples, stop_at=9)
    with pytest.raises(KeyboardInterrupt):
        store_of(model, rows, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    rows = Counted(examples)
    store = store_of(model, rows, tmp_path / "store")
    assert rows.asked == [8, 9, 10, 11]
    again = store_of(model, examples, tmp_path / "other").batch(range(ROWS))
    assert all(torch.equal(state, again[name]) for name, state in store.batch(range(ROWS)).items())
    assert not list(tmp_path.glob("*.partial"))


def test_what_cannot_be_stored_is_refused(examples, tmp_path):
    model = build()
    with pytest.raises(ValueError, match="expected equally many"):
        store_of(model, examples, tmp_path / "store", more_views=[examples[:3]])
    with torch.no_grad():
        for layer in model.get_base_model().mf2.emo_vl.qformer.layers:
            layer.query_feed_forward.norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match="too large for float16; store them with dtype='float32'"):
        store_of(model, examples, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is no store"):
        store_of(model, examples, tmp_path, rebuild=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_nothing_half_written_and_the_store_that_was_there(examples, small_disk, monkeypatch):
    model = build()
    store_of(model, examples[:4], small_disk / "store")
    before = content(small_disk / "store")
    with pytest.raises(OSError, match="the disk is full"):
        store_of(model, examples * 20, small_disk / "store", rebuild=True)
    assert content(small_disk / "store") == before and not list(small_disk.glob("*.partial"))
    # And where another program takes the space meanwhile: what is whole is kept, and continued.
    usage = shutil.disk_usage
    monkeypatch.setattr("mf2face.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    with pytest.raises(OSError, match=r"the disk is full .*of 240 images are stored.*the same command continues"):
        store_of(model, examples * 20, small_disk / "store", rebuild=True)
    assert content(small_disk / "store") == before
    monkeypatch.setattr("mf2face.files.shutil.disk_usage", usage)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    rows = Counted(examples * 20)
    assert len(store_of(model, rows, small_disk / "store", rebuild=True)) == 240 and 0 < len(rows.asked) < 240
    assert not list(small_disk.glob("*.partial"))


def open_in_a_process(folder: Path) -> tuple[float, int]:
    rows = Counted(rows_of(tiny_batch(tiny_config(), rows=ROWS)))
    return float(store_of(build(), rows, folder).batch([11])["last_emo"].sum()), len(rows.asked)


def test_several_processes_share_one_store(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        (one, asked), (other, asked_too) = pool.map(open_in_a_process, [tmp_path / "store"] * 2, chunksize=1)
    assert one == other and asked + asked_too == ROWS, "they share the work"


def test_a_shard_of_another_process_is_waited_for_and_built_where_that_dies(examples, tmp_path):
    """The first shard is claimed by a process that is killed while this one is at the second."""
    lock = tmp_path / ".store.0.lock"
    code = "import sys, time; from mf2face.files import locked\n"
    code += "with locked(sys.argv[1]): print('held', flush=True), time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"

    class Killing(Counted):
        def __getitem__(self, row):
            if not self.asked:
                other.kill()
                other.wait()
            return super().__getitem__(row)

    rows = Killing(examples)
    store = store_of(build(), rows, tmp_path / "store")
    assert rows.asked == [8, 9, 10, 11, *range(8)] and len(store) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_workers_prepare_the_images_and_change_neither_the_store_nor_what_is_drawn_next(examples, tmp_path):
    stores, drawn = [], []
    for workers in (0, 2):
        torch.manual_seed(1)
        stores.append(store_of(build(), examples, tmp_path / str(workers), workers=workers).batch(range(ROWS)))
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]
    assert all(torch.equal(state, stores[1][name]) for name, state in stores[0].items())


def test_outputs_are_computed_in_the_precision_of_the_training(examples, tmp_path):
    model = build()
    full = store_of(model, examples, tmp_path / "full", dtype="float32")
    half = store_of(model, examples, tmp_path / "half", dtype="float32", precision="bfloat16")
    difference = (full.batch(range(ROWS))["last_emo"] - half.batch(range(ROWS))["last_emo"]).abs().mean()
    assert 1e-4 < difference < 0.1
    with pytest.raises(StaleStoreError, match="another precision: stored bfloat16, now float32"):
        store_of(model, examples, tmp_path / "half", dtype="float32")
    with pytest.raises(ValueError, match="dtype: got 'int8'"):
        store_of(model, examples, tmp_path / "none", dtype="int8")


@pytest.fixture
def store(examples, flipped, tmp_path):
    """12 images, 2 views, 8 rows a shard."""
    return store_of(build(), examples, tmp_path / "store", more_views=[flipped], dtype="float32")


def test_views_follow_one_another_and_rows_come_in_any_order_across_shards(store, flipped, tmp_path):
    alone = store_of(build(), flipped, tmp_path / "flipped", dtype="float32")
    assert torch.equal(store.batch([ROWS + 3])["last_emo"], alone.batch([3])["last_emo"])
    states = store.batch([20, 0, 4, 0])["last_emo"]
    for place, row in enumerate((20, 0, 4, 0)):
        assert torch.equal(states[place], store.batch([row])["last_emo"][0])
    with pytest.raises(IndexError, match="expected 0 to 23"):
        store.batch([24])


def test_a_loader_gets_batches_with_their_labels_and_both_views(store):
    examples = StoredExamples(store, {"emotion_labels": torch.arange(ROWS)})
    every = store.batch(range(2 * ROWS))["last_emo"]
    seen = set()
    for _ in range(5):
        for batch in DataLoader(examples, 5, shuffle=True, collate_fn=collate_stored):
            for state, label in zip(batch["states"]["last_emo"], batch["emotion_labels"].tolist(), strict=True):
                (view,) = [view for view in (0, 1) if torch.equal(state, every[view * ROWS + label])]
                seen.add(view)
    assert seen == {0, 1} and examples[3]["emotion_labels"].tolist() == [3]
    with pytest.raises(ValueError, match=r"got {'au_labels': 4} rows, expected 12"):
        StoredExamples(store, {"au_labels": torch.zeros(4, 2)})


@pytest.mark.parametrize("name", [shard_name(2), "store.json", "shared.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "lost", "a flipped bit"])
def test_a_damaged_file_is_named_before_it_is_read(store, name, harm):
    path, reason = store.folder / name, f"{name}.*rebuild"
    content = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "a flipped bit":  # of a number: the header and the size stay as they were
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
        reason = reason if path.suffix == ".json" else f"{name}: checksum: got .* expected .*rebuild"
    with pytest.raises(OSError, match=reason):
        StateStore(store.folder).batch([23])
    if harm == "a flipped bit" and name == shard_name(2):  # the other shards are whole
        assert StateStore(store.folder).batch([0])["last_emo"].isfinite().all()


def test_a_manifest_of_wrong_types_names_its_file_and_field(store):
    path = store.folder / "store.json"
    text = path.read_text()
    for field in ("identity", "identity.images", "identity.views", "shard_rows", "checksums", ""):
        for value in (None, True, "x", 1.5, -1, 0, 10**30, [], {}, "missing"):
            manifest = json.loads(text)
            owner, last = manifest["identity"] if "." in field else manifest, field.rpartition(".")[2]
            if not field:
                manifest = value
            elif value == "missing":
                del owner[last]
            else:
                owner[last] = value
            path.write_text(json.dumps(manifest))
            with pytest.raises(OSError, match=r"store.json: |: checksum: ") as raised:
                StateStore(store.folder).batch([0])
            assert (field or "identity").rstrip("s") in str(raised.value) and "rebuild" in str(raised.value)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    rows = MFASynthetic(10, "drawn", size=64, cache_dir=tmp_path_factory.mktemp("faces"))
    return MF2Examples(rows, MF2Processor.for_model(MF2Config.from_size("tiny")), texts=False)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return MF2VisionTower(MF2Config.from_size("tiny").vision_config)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_stored_tokens_are_those_of_the_tower(faces, tower, tmp_path, dtype, tolerance):
    store = load_or_store(tower, [faces], tmp_path, dtype=dtype, batch_size=4)
    assert len(store) == 10
    for index in (0, 9):
        tokens = tower(faces[index]["pixel_values"][None])[0]
        torch.testing.assert_close(store[index]["image_tokens"], tokens, rtol=tolerance, atol=tolerance)
        assert torch.equal(store[index]["landmarks"], faces[index]["landmarks"])


def test_tokens_are_stored_once_for_each_tower_and_rows_and_old_builds_are_removed(faces, tower, tmp_path, monkeypatch):
    for name in ("old", "young", "running"):
        (tmp_path / f"{name}.partial").mkdir()
        if name != "young":
            os.utime(tmp_path / f"{name}.partial", (0, 0))
    with locked(tmp_path / ".running.lock"):
        first = load_or_store(tower, [faces], tmp_path).folder
        assert sorted(path.stem for path in tmp_path.glob("*.partial")) == ["running", "young"]
    monkeypatch.setattr(MF2VisionTower, "forward", lambda *_: pytest.fail("the tower was asked again"))
    assert load_or_store(tower, [faces], tmp_path).folder == first
    monkeypatch.undo()
    fewer = MF2Examples(faces.dataset.select(range(9)), faces.processor, texts=False)
    assert load_or_store(tower, [fewer], tmp_path).folder != first
    with torch.no_grad():
        tower.backbone.norm.bias[0] += 1e-3
    assert load_or_store(tower, [faces], tmp_path).folder != first
