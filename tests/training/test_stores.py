"""Training from stored outputs is training, and a stale, foreign or damaged store is never read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.stores import (
    StaleStoreError,
    StateStore,
    StoredExamples,
    collate_stored,
    frozen_states,
    load_or_store_vision,
    shard_name,
    store_identity,
)
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from modeling_mf2.dfn.states import compute_states
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


ROWS = 12


def config(**fields):
    return DFNConfig(**{"bottleneck": 4, "layers": 3, "pathways": ["visual"], **fields})


@pytest.fixture
def build(make_config, shaken):
    def make(adapter=None):
        torch.manual_seed(0)
        base = shaken(MF2ForFaceAnalysis(make_config()))
        return get_peft_model(base, adapter or config())

    return make


@pytest.fixture
def batch(make_config, make_batch):
    full = make_batch(make_config(), rows=ROWS)
    return {name: full[name] for name in ("pixel_values", "landmarks", "au_labels", "emotion_labels")}


@pytest.fixture
def examples(batch):
    return [{name: batch[name][row] for name in ("pixel_values", "landmarks")} for row in range(ROWS)]


def labels(batch, rows=slice(None)):
    return {name: batch[name][rows] for name in ("au_labels", "emotion_labels")}


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def store_of(model, examples, folder, **options):
    return frozen_states(model, examples, folder, **{"data": "faces", "batch_size": 4, "shard_rows": 8, **options})


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
def test_full_precision_states_give_the_same_gradients_in_every_bit(build, batch, examples, tmp_path, fields):
    model = build(config(init_weights=False, **fields)).train()
    store = store_of(model, examples, tmp_path / "store", dtype="float32")
    rows = slice(4, 8)
    with_images = model(**{name: tensor[rows] for name, tensor in batch.items()})
    with_images.loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.zero_grad()
    from_store = model(states=store.batch(range(4, 8)), **labels(batch, rows))
    assert torch.equal(from_store.loss, with_images.loss)
    assert torch.equal(from_store.emotion_logits, with_images.emotion_logits)
    from_store.loss.backward()
    found = gradients(model)
    assert expected and all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_states_give_nearly_the_same_gradients(build, batch, examples, tmp_path):
    model = build(config(init_weights=False)).train()
    store = store_of(model, examples, tmp_path / "store")
    found = []
    for states in (compute_states(model, {name: batch[name] for name in examples[0]}), store.batch(range(ROWS))):
        model(states=states, **labels(batch)).loss.backward()
        found.append(torch.cat([gradient.flatten() for gradient in gradients(model).values()]))
        model.zero_grad()
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-3


def test_an_epoch_from_the_store_asks_no_backbone_and_states_alike_are_stored_once(
    build, examples, tmp_path, monkeypatch
):
    model = build()
    store = store_of(model, examples, tmp_path / "store")
    assert store.shared["visual_emo.0"].shape == (1, 32) and store.shared["visual_au.0"].shape == (3, 32)
    assert store.shards[0]["visual_au"].shape == (8, 3, 2, 32)  # images, AUs, layers without the first, width
    base = model.get_base_model()
    for module in (base.mf2.vision, base.mf2.emo_vl.qformer, base.mf2.au_vl.qformer):
        monkeypatch.setattr(module, "forward", lambda *_, **__: pytest.fail("the backbone was asked"))
    assert model(states=store.batch([0, 5])).au_logits.shape == (2, 3)
    store_of(model, examples, tmp_path / "store")  # opened, not built


def test_without_an_adapter_the_heads_alone_can_be_trained_from_a_store(build, batch, examples, tmp_path):
    base = build().unload()
    store = store_of(base, examples, tmp_path / "store", dtype="float32")
    with torch.no_grad():
        expected = base.eval()(**{name: batch[name][:4] for name in examples[0]}).au_logits
        assert torch.equal(base(states=store.batch(range(4))).au_logits, expected)


def test_a_store_of_anything_else_is_refused_and_rebuilt_on_request(build, examples, tmp_path):
    model, folder = build(), tmp_path / "store"
    store_of(model, examples, folder, processor={"size": 64})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for options, what in (
        ({"data": "others"}, "data"),
        ({"processor": {"size": 96}}, "processor"),
        ({"dtype": "float32"}, "dtype"),
        ({"more_views": [examples]}, "views"),
    ):
        with pytest.raises(StaleStoreError, match=f"another .*{what}: stored"):
            store_of(model, examples, folder, **{"processor": {"size": 64}, **options})
    with pytest.raises(StaleStoreError, match="another read"):
        store_of(build(config(layers=[1])), examples, folder, processor={"size": 64})
    other = build()
    other.config.region_window = 0.5
    with pytest.raises(StaleStoreError, match="another config"):
        store_of(other, examples, folder, processor={"size": 64})
    model.config.au_thresholds = [0.4] * len(model.config.action_units)  # tuned after training: of no matter
    store_of(model, examples, folder, processor={"size": 64})
    with torch.no_grad():
        model.get_base_model().mf2.emo_vl.queries[0, 0, 0] += 1e-3
    with pytest.raises(StaleStoreError, match="another backbone"):
        store_of(model, examples, folder, processor={"size": 64})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    store_of(model, examples, folder, processor={"size": 64}, rebuild=True)
    store_of(model, examples, folder, processor={"size": 64})


def test_training_does_not_make_a_store_stale(build, batch, examples):
    model = build(config(heads="all"))
    before = store_identity(model, ROWS, 1, "faces", None, "float16")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert store_identity(model, ROWS, 1, "faces", None, "float16") == before
    json.dumps(before)


def test_an_interrupted_build_goes_on_where_it_was(build, examples, tmp_path):
    model, asked = build(), []

    class Examples(list):
        stop_at = 9

        def __getitem__(self, row):
            asked.append(row)
            if row == self.stop_at:
                raise KeyboardInterrupt
            return super().__getitem__(row)

    rows = Examples(examples)
    with pytest.raises(KeyboardInterrupt):
        store_of(model, rows, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    asked.clear()
    rows.stop_at = None
    store = store_of(model, rows, tmp_path / "store")
    assert asked == [8, 9, 10, 11]
    again = store_of(model, examples, tmp_path / "other")
    assert all(torch.equal(a, again.batch(range(ROWS))[name]) for name, a in store.batch(range(ROWS)).items())
    assert not list(tmp_path.glob("*.partial"))


def test_views_are_stored_one_after_the_other(build, examples, tmp_path):
    flipped = [{**row, "pixel_values": row["pixel_values"].flip(-1)} for row in examples]
    store = store_of(build(), examples, tmp_path / "store", more_views=[flipped], dtype="float32")
    alone = store_of(build(), flipped, tmp_path / "flipped", dtype="float32")
    assert torch.equal(store.batch([ROWS + 3])["last_emo"], alone.batch([3])["last_emo"])
    with pytest.raises(ValueError, match="expected equally many"):
        store_of(build(), examples, tmp_path / "bad", more_views=[flipped[:3]])


def test_states_that_half_precision_cannot_hold_are_said_to_be_so(build, examples, tmp_path):
    model = build()
    with torch.no_grad():
        for layer in model.get_base_model().mf2.emo_vl.qformer.layers:
            layer.query_feed_forward.norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match="too large for float16; store them with dtype='float32'"):
        store_of(model, examples, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_store_is_left_alone(build, examples, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is no store"):
        store_of(build(), examples, tmp_path, rebuild=True)
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


def test_a_full_disk_leaves_nothing_half_written_and_the_store_that_was_there(build, examples, small_disk, monkeypatch):
    model = build()
    store_of(model, examples[:4], small_disk / "store")
    before = {path.name: path.read_bytes() for path in (small_disk / "store").iterdir()}
    many = examples * 20
    with pytest.raises(OSError, match="the disk is full"):
        store_of(model, many, small_disk / "store", rebuild=True)
    # And where another program takes the space meanwhile.
    monkeypatch.setattr("mf2face.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    with pytest.raises(OSError, match="No space left"):
        store_of(model, many, small_disk / "store", rebuild=True)
    found = {path.name: path.read_bytes() for path in (small_disk / "store").iterdir()}
    assert found == before and not list(small_disk.glob("*.partial"))
    store_of(model, examples[:4], small_disk / "store")


SEVERAL = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from conftest import shake, tiny_batch, tiny_config
from peft import get_peft_model
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis
from mf2face.training.stores import frozen_states
torch.manual_seed(0)
config = tiny_config()
model = get_peft_model(shake(MF2ForFaceAnalysis(config)), DFNConfig(bottleneck=4, layers=3, pathways=["visual"]))
batch = tiny_batch(config, rows=12)
rows = [{name: batch[name][row] for name in ("pixel_values", "landmarks")} for row in range(12)]
store = frozen_states(model, rows, sys.argv[1], data="faces", batch_size=4, shard_rows=8)
print(float(store.batch([11])["last_emo"].sum()))
"""


def test_several_processes_share_one_store(tmp_path):
    here = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    command = [sys.executable, "-c", SEVERAL, str(tmp_path / "store"), str(here)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), results[0][1][-2000:] + results[1][1][-2000:]
    assert results[0][0] == results[1][0]
    assert sum("frozen states" in errors for _, errors in results) == 1


def test_the_trainer_runs_on_a_store_as_on_images(build, batch, examples, tmp_path):
    ends = []
    for stored in (False, True):
        model = build()
        store = store_of(model, examples, tmp_path / "store", dtype="float32")
        rows = StoredExamples(store, labels(batch))
        images = [{name: tensor[row] for name, tensor in batch.items()} for row in range(ROWS)]
        options = {"max_steps": 6, "learning_rate": 0.01, "remove_unused_columns": False, "disable_tqdm": True}
        options |= {"label_names": ["au_labels", "emotion_labels"], "save_strategy": "no", "use_cpu": True}
        arguments = TrainingArguments(str(tmp_path / str(stored)), per_device_train_batch_size=4, **options)
        data = {"train_dataset": rows, "data_collator": collate_stored} if stored else {"train_dataset": images}
        trainer = Trainer(model, arguments, eval_dataset=data["train_dataset"], **data)
        trainer.train()
        found = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        ends.append((trainer.evaluate()["eval_loss"], found))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-5)
    for name, parameter in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], parameter, rtol=0, atol=1e-4, msg=name)


@pytest.fixture
def store(build, examples, tmp_path):
    """12 images, 2 views, 8 rows a shard."""
    flipped = [{**row, "pixel_values": row["pixel_values"].flip(-1)} for row in examples]
    return store_of(build(), examples, tmp_path / "store", more_views=[flipped], dtype="float32")


def test_rows_come_in_any_order_across_shards(store):
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
    assert seen == {0, 1}
    still = StoredExamples(store, {"emotion_labels": torch.arange(ROWS)}, draw_views=False)
    assert torch.equal(still[3]["states"]["last_emo"][0], every[3])
    with pytest.raises(ValueError, match=r"got {'au_labels': 4} rows, expected 12"):
        StoredExamples(store, {"au_labels": torch.zeros(4, 2)})


@pytest.mark.parametrize("name", [shard_name(1), "store.json", "shared.safetensors"])
@pytest.mark.parametrize("harm", ["cut", "lost"])
def test_a_damaged_file_is_named(store, name, harm):
    path = store.folder / name
    content = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=f"{name}.*rebuild"):
        StateStore(store.folder)


@pytest.mark.parametrize("name", [shard_name(2), "shared.safetensors"])
def test_a_flipped_bit_is_noticed_before_the_file_is_read(store, name):
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 4  # of a number: the header and the size stay as they were
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{name}: checksum: got .* expected .*rebuild"):
        StateStore(store.folder).batch([23])
    if name != "shared.safetensors":
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
    path.write_text("[" * 100_000)
    with pytest.raises(OSError, match=r"store\.json"):
        StateStore(store.folder)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    rows = MFASynthetic(10, size=64, cache_dir=tmp_path_factory.mktemp("faces"))
    return MF2Examples(rows, MF2Processor.for_model(MF2Config.from_size("tiny")), texts=False)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return MF2VisionTower(MF2Config.from_size("tiny").vision_config)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_stored_tokens_are_those_of_the_tower(faces, tower, tmp_path, dtype, tolerance):
    store = load_or_store_vision(tower, faces, tmp_path, dtype, batch_size=4)
    assert len(store) == 10
    for index in (0, 9):
        tokens = tower(faces[index]["pixel_values"][None])[0]
        torch.testing.assert_close(store[index]["image_tokens"], tokens, rtol=tolerance, atol=tolerance)
        assert torch.equal(store[index]["landmarks"], faces[index]["landmarks"])


def test_tokens_are_stored_once_for_each_tower_and_rows(faces, tower, tmp_path, monkeypatch):
    first = load_or_store_vision(tower, faces, tmp_path).folder
    monkeypatch.setattr(MF2VisionTower, "forward", lambda *_: pytest.fail("the tower was asked again"))
    assert load_or_store_vision(tower, faces, tmp_path).folder == first
    monkeypatch.undo()
    fewer = MF2Examples(faces.dataset.select(range(9)), faces.processor, texts=False)
    assert load_or_store_vision(tower, fewer, tmp_path).folder != first
    with torch.no_grad():
        tower.backbone.norm.bias[0] += 1e-3
    assert load_or_store_vision(tower, faces, tmp_path).folder != first


def test_a_killed_build_is_continued_or_removed_after_a_day(faces, tower, tmp_path):
    names = ("old", "young", "running")
    for name in names:
        (tmp_path / f"{name}.partial").mkdir()
    for name in ("old", "running"):
        os.utime(tmp_path / f"{name}.partial", (0, 0))
    with FileLock(tmp_path / ".running.lock"):
        load_or_store_vision(tower, faces, tmp_path)
        assert sorted(path.stem for path in tmp_path.glob("*.partial")) == ["running", "young"]
