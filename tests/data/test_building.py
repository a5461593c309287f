"""From a folder of pictures to a data set that trains: whole, resumable, and without a face on both sides."""

import errno
import json
import os

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import train
from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.build import mfa as building
from mf2face.data.build.mfa import BuildOptions, build_mfa, shards_of
from mf2face.data.build.splits import plan_mfa
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from mf2face.data.examples import MF2Examples
from mf2face.data.schema import check_leaks, described_labels, validate_examples
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from mf2face.training.arguments import MF2Arguments
from mf2face.training.build import load_splits
from processing_mf2 import MF2Processor
from processing_mf2.image_io import read_image


PEOPLE, EACH, SIDE = 6, 8, 96
OPTIONS = BuildOptions(landmarks="corpus", crop_size=64, shard_rows=12)
SIZES = {"train": 4, "validation": 1, "test": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn people, as anybody's own folder."""
    folder = tmp_path_factory.mktemp("own")
    truth, rows = synthetic_truth(PEOPLE * 16), []
    for person in range(PEOPLE):
        for index in range(16 * person, 16 * person + EACH):
            pixels, landmarks = draw_example(index, size=SIDE)
            cv2.imwrite(str(folder / f"{index}.jpg"), pixels[..., ::-1])
            units = dict(zip(LABEL_SETS["mfa"].action_units, truth["au_labels"][index].tolist(), strict=True))
            row = {"image": f"{index}.jpg", "subject": f"p{person}", "landmarks": landmarks.tolist()}
            rows.append(row | {"emotion": EMOTIONS[truth["emotion"][index]]} | units)
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def own(drawn, tmp_path):
    """A copy that a test may spoil."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in drawn.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def plan(folder):
    return plan_mfa(read_corpus("own", folder, licence="mine"), balance=False, sizes=SIZES)


@pytest.fixture(scope="module")
def built(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "mfa"
    frames, split = plan(drawn)
    return out, frames, split, build_mfa(frames, split, out, OPTIONS)


def test_what_is_built_loads_and_is_valid(built, tmp_path):
    out, frames, split, report = built
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 32, "validation": 8, "test": 8}
    rows = datasets.concatenate_datasets(list(loaded.values()))
    assert validate_examples(rows) == 48
    check_leaks(rows)
    assert described_labels(loaded["train"]) == LABEL_SETS["mfa"]
    where = {frames.row_id(row): row for row in range(len(frames))}
    for found in rows.remove_columns("image"):
        row = where[f"{found['corpus']}/{found['video']}/{found['frame']}"]
        assert found["au_labels"] == frames.au_labels[row].tolist() and found["emotion"] == frames.emotion[row]
        assert found["split"] == split[row] and found["landmark_source"] == "given" and found["licence"] == "mine"
        assert found["emotion_caption"] and found["caption_writer"] == "rule"
    stored = pq.read_metadata(next((out / "data").glob("train-00000-of-00003.parquet")))
    assert stored.num_rows == 11
    card = (out / "README.md").read_text()
    assert "| images | 32 | 8 | 8 |" in card and "**Licence.** mine" in card and "across splits: none" in card
    assert report == json.loads((out / "build.json").read_text())
    assert report["counts"]["train"]["people or videos"] == 4
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "build.json", "data", "dataset_infos.json"]


def test_crops_are_what_the_processor_would_cut_and_have_room_around(built, tmp_path):
    out, frames, _, _ = built
    processor = MF2Processor.for_model(MF2Config.from_size("tiny", label_set="mfa"))
    processor.image_processor.size = {"height": 64, "width": 64}
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path))["test"]
    row = loaded[0]
    assert row["image"].size == (80, 80)
    place = [video.name for video in frames.videos].index(row["video"])
    whole = processor(frames.root / frames.image(place), landmarks=frames.landmarks[place])
    cut = processor(row["image"], landmarks=np.array(row["landmarks"]))
    assert np.allclose(whole["landmarks"], cut["landmarks"], atol=0.05)
    assert (whole["pixel_values"] - cut["pixel_values"]).abs().mean() < 0.03  # saved as JPEG in between


def test_it_is_read_as_it_lies_and_as_a_stream(built):
    out, *_ = built
    processor = MF2Processor.for_model(MF2Config.from_size("tiny"))
    splits = stream_splits(str(out))
    streamed = MF2StreamedExamples(splits["train"], processor, buffer=1)
    whole = MF2Examples(datasets.load_dataset(str(out))["train"], processor)
    for one, other in zip(iter(streamed), (whole[k] for k in range(14)), strict=False):
        assert (one["pixel_values"] == other["pixel_values"]).all() and (one["input_ids"] == other["input_ids"]).all()
    assert len(splits["test"]) == 8 and described_labels(splits["train"]) == LABEL_SETS["mfa"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 3, 5])
def test_a_killed_build_goes_on_and_ends_the_same(built, drawn, tmp_path, monkeypatch, after):
    out, frames, split, _ = built
    writes, write = [], building.write_table

    def die(file, table, features):
        if len(writes) == after:
            file.with_name(file.name + ".part").write_bytes(b"half")
            raise Killed
        writes.append(file.name)
        write(file, table, features)

    def die_at_the_end(*told):
        raise Killed

    monkeypatch.setattr(building, "write_table", die)
    with monkeypatch.context() as last, pytest.raises(Killed):
        last.setattr(building, "write_mfa_card", die_at_the_end)
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert not (tmp_path / "mfa").exists()
    monkeypatch.setattr(building, "write_table", lambda *told: (writes.append(told[0].name), write(*told)))
    build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert len(writes) == len(set(writes)) == 5  # no shard is built twice
    for file in sorted((out / "data").iterdir()):
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "mfa" / "data" / file.name))
    assert list(tmp_path.glob(".*")) == []


def test_a_kill_at_the_very_end_doubles_nothing_under_other_options(built, tmp_path, monkeypatch):
    _, frames, split, _ = built

    def die(*told):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(building.Path, "rename", die)
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    other = BuildOptions(landmarks="corpus", crop_size=64, shard_rows=5)
    with pytest.raises(ValueError, match=r"unfinished build of other options .*shard_rows: 12"):
        build_mfa(frames, split, tmp_path / "mfa", other)
    (tmp_path / ".mfa.building" / "plan.json").unlink()  # its shards are of an unknown plan
    report = build_mfa(frames, split, tmp_path / "mfa", other)
    rows = sum(pq.read_metadata(file).num_rows for file in (tmp_path / "mfa" / "data").iterdir())
    assert rows == sum(counts["images"] for counts in report["counts"].values()) == 48


def test_a_build_that_was_killed_after_its_end_is_cleaned_up(built, tmp_path, monkeypatch):
    _, frames, split, _ = built

    def die(*told):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(building, "remove_work", die)
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert (tmp_path / ".mfa.building").is_dir()
    assert build_mfa(frames, split, tmp_path / "mfa", OPTIONS)["counts"]["train"]["images"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["mfa"]
    with pytest.raises(FileExistsError, match="is there already"):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "Anger").mkdir()
    cv2.imwrite(str(tmp_path / "Anger" / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "Anger" / "a.jpg").rename(tmp_path / "Anger" / os.fsdecode(b"caf\xe9.jpg"))
    frames = read_corpus("own", tmp_path)
    with pytest.raises(CorpusError, match=r"image: got 'Anger/caf.*\.jpg', expected a name in UTF-8. Rename it"):
        build_mfa(frames, ["train"], tmp_path / "mfa", BuildOptions(landmarks="template"))


def test_another_plan_does_not_mix_with_an_unfinished_one(built, tmp_path, monkeypatch):
    _, frames, split, _ = built
    monkeypatch.setattr(building, "_finish", lambda *told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"\.mfa\.building holds an unfinished build of other options.*crop_size: 64"):
        build_mfa(frames, split, tmp_path / "mfa", BuildOptions(landmarks="corpus", crop_size=72, shard_rows=12))


def test_a_full_disk_is_named_and_what_is_done_is_kept(built, tmp_path, monkeypatch):
    _, frames, split, _ = built
    write, writes = building.write_table, []

    def full(file, table, features):
        writes.append(file.name)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, table, features)

    monkeypatch.setattr(building, "write_table", full)
    with pytest.raises(OSError, match=r"the disk of .*\.mfa\.building is full; finished shards are kept") as caught:
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert caught.value.errno == errno.ENOSPC
    build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert len(writes) == 6 and (tmp_path / "mfa" / "README.md").is_file()


def test_unreadable_images_are_listed_and_skipped_only_when_asked(own, tmp_path):
    frames, split = plan(own)
    (own / "0.jpg").write_bytes(b"no image")
    (own / "17.jpg").write_bytes((own / "17.jpg").read_bytes()[:600])
    with pytest.raises(CorpusError, match=r"2 images that cannot be used .*left_out.txt lists them.*--skip_unreadable"):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    listed = (tmp_path / ".mfa.building" / "left_out.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in sorted(listed)] == [["0.jpg", "unreadable"], ["17.jpg", "unreadable"]]
    skipping = BuildOptions(landmarks="corpus", crop_size=64, shard_rows=12, skip_unreadable=True)
    report = build_mfa(frames, split, tmp_path / "mfa", skipping)
    assert (
        report["left_out"] == 2 == report["left_out_because"]["cannot be read (--skip_unreadable)"]
        and sum(counts["images"] for counts in report["counts"].values()) == 46
    )
    assert (tmp_path / "mfa" / "left_out.txt").is_file()


def test_repaired_images_come_in_without_starting_anew(own, tmp_path, monkeypatch):
    frames, split = plan(own)
    good = (own / "0.jpg").read_bytes()
    (own / "0.jpg").write_bytes(b"no image")
    with pytest.raises(CorpusError):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    (own / "0.jpg").write_bytes(good)
    writes, write = [], building.write_table
    monkeypatch.setattr(building, "write_table", lambda *told: (writes.append(told[0].name), write(*told)))
    report = build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert len(writes) == 1 and report["left_out"] == 0


@pytest.mark.parametrize("near", ["drop", "raise", "tell"])
def test_a_copy_on_the_other_side_is_found(own, tmp_path, near):
    frames, split = plan(own)
    held = next(frames.image(row) for row in range(len(frames)) if split[row] == "test")
    taught = next(frames.image(row) for row in range(len(frames)) if split[row] == "train")
    (own / taught).write_bytes((own / held).read_bytes())
    places = {frames.image(row): row for row in range(len(frames))}
    frames.landmarks[places[taught]] = frames.landmarks[places[held]]
    options = BuildOptions(landmarks="corpus", crop_size=64, shard_rows=12, near=near)
    if near == "raise":
        with pytest.raises(ValueError, match=r"1 images are all but identical to one in another split: own/"):
            build_mfa(frames, split, tmp_path / "mfa", options)
        return
    report = build_mfa(frames, split, tmp_path / "mfa", options)
    (told,) = report["near_identical"]
    assert told == f"own/{taught[:-4]}/0 (train) repeats own/{held[:-4]}/0 (test)"
    assert report["counts"]["train"]["images"] == (31 if near == "drop" else 32)


def test_people_in_two_splits_are_refused(built, tmp_path):
    _, frames, split, _ = built
    mixed = ["test" if row == 3 else name for row, name in enumerate(split)]
    with pytest.raises(CorpusError, match="people or videos in two splits, such as p"):
        build_mfa(frames, mixed, tmp_path / "mfa", OPTIONS)
    report = build_mfa(frames, mixed, tmp_path / "mfa", BuildOptions(landmarks="corpus", crop_size=64, near="tell"))
    assert report["in_two_splits"]


def test_aligned_pictures_keep_their_pixels_and_nothing_else(own, tmp_path):
    secret, exif = b"secret-of-the-owner", Image.Exif()
    exif[0x010E] = secret.decode()
    for number, file in enumerate(sorted(own.glob("*.jpg"))):
        picture = Image.open(file)
        exif[0x0112] = 6 if number % 3 == 0 else 1
        picture.save(file, "PNG" if number % 3 == 1 else "JPEG", exif=exif, comment=secret)
        file.write_bytes(file.read_bytes() + secret)
    frames, split = plan(own)
    build_mfa(frames, split, tmp_path / "mfa", BuildOptions(landmarks="template", crop_size=64, near="tell"))
    rows = datasets.load_dataset(str(tmp_path / "mfa"), streaming=True)
    rows = [row for name in rows for row in rows[name].cast_column("image", datasets.Image(decode=False))]
    assert len(rows) == 48
    for row in rows:
        there, file = row["image"]["bytes"], own / f"{row['video']}.jpg"
        assert secret in file.read_bytes() and secret not in there and row["landmark_source"] == "template"
        assert b"Exif" not in there and b"eXIf" not in there and row["image"]["path"] is None
        seen, kept = (read_image(one).permute(1, 2, 0).numpy() for one in (file, there))
        if Image.open(file).getexif().get(0x0112) != 6:
            assert (seen == kept).all()
        else:  # written anew, upright
            upright, lying = (cv2.resize(one, (64, 64)).astype(float) for one in (seen, np.rot90(seen)))
            assert np.abs(upright - kept).mean() < 5 < np.abs(lying - kept).mean()


def test_what_is_listed_as_unreadable_names_no_folder_of_the_builder(own, tmp_path):
    frames, split = plan(own)
    (own / "0.jpg").write_bytes(b"no image")
    build_mfa(frames, split, tmp_path / "mfa", BuildOptions(landmarks="template", skip_unreadable=True))
    for file in ("left_out.txt", "build.json", "README.md", "dataset_infos.json"):
        assert str(own) not in (tmp_path / "mfa" / file).read_text()


def test_shards_are_random_parts_of_their_split(built):
    _, frames, split, _ = built
    shards = shards_of(frames, split, OPTIONS)
    assert sorted(row for shard in shards for row in shard.rows) == list(range(48))
    assert all({split[row] for row in shard.rows} == {shard.split} for shard in shards)
    assert all(len({frames.videos[row].subject for row in shard.rows}) > 2 for shard in shards if shard.of > 1)


def test_train_py_takes_what_was_built(built, tmp_path, monkeypatch):
    out, *_ = built
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = load_splits(MF2Arguments(dataset=str(out)))
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 32, "validation": 8, "test": 8}
    command = ["--dataset", str(out), "--streaming", "True", "--task", "full", "--output_dir", str(tmp_path / "run")]
    command += ["--use_cpu", "True", "--disable_tqdm", "True", "--per_device_train_batch_size", "8", "--max_steps", "2"]
    command += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
    scores = train.main(command)
    assert scores["test_images"] == 8 and (tmp_path / "run" / "model.safetensors").is_file()


def test_pictures_with_emotions_alone_are_built_and_trained_in_the_splits_that_are_written(
    drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    folder.mkdir()
    rows, names = [json.loads(line) for line in (drawn / "labels.jsonl").read_text().splitlines()], {}
    emotions = LABEL_SETS["raf_db"].emotions
    lines = ["image,emotion,subject,split"]
    for number, row in enumerate(rows[::2]):
        (folder / row["image"]).write_bytes((drawn / row["image"]).read_bytes())
        split = names.setdefault(row["subject"], ("train", "train", "val", "test")[len(names) % 4])
        lines.append(f"{row['image']},{emotions[number % len(emotions)]},{row['subject']},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    frames, split = plan_mfa(read_corpus("own", folder, label_set="raf_db"), balance=False, require="emotion")
    assert {frames.videos[place].official for place in frames.video} == set(split) == {"train", "validation", "test"}
    assert split == [frames.videos[place].official for place in frames.video]
    build_mfa(frames, split, tmp_path / "mfa", BuildOptions(landmarks="template", crop_size=64, near="tell"))
    loaded = datasets.load_dataset(str(tmp_path / "mfa"), cache_dir=str(tmp_path / "loaded"))
    assert described_labels(loaded["train"]) == LABEL_SETS["raf_db"]
    assert validate_examples(datasets.concatenate_datasets(list(loaded.values())), "raf_db") == len(frames)
    command = ["--dataset", str(tmp_path / "mfa"), "--label_set", "raf_db", "--output_dir", str(tmp_path / "run")]
    command += ["--use_cpu", "True", "--disable_tqdm", "True", "--per_device_train_batch_size", "8", "--max_steps", "2"]
    command += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]
    scores = train.main(command)
    assert scores["test_images"] == split.count("test") and "emotion_top1" in scores


def test_mistakes(built, tmp_path):
    out, frames, split, _ = built
    with pytest.raises(FileExistsError, match="is there already"):
        build_mfa(frames, split, out, OPTIONS)
    with pytest.raises(ValueError, match="cache: got none, expected a LandmarkCache"):
        build_mfa(frames, split, tmp_path / "mfa")
    with pytest.raises(ValueError, match="split: got 2"):
        build_mfa(frames, ["train", "test"], tmp_path / "mfa", OPTIONS)
    for wrong in ({"landmarks": "none"}, {"margin": -1}, {"crop_size": 8}, {"near": "keep"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            BuildOptions(**wrong)
