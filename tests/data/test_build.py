"""From a folder of pictures to a data set that trains: whole, resumable, and without a face on both sides."""

import errno
import io
import itertools
import json
import os
from dataclasses import replace

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpus_frames import make_frames
from datasets import Dataset
from PIL import Image, PngImagePlugin
from tqdm import tqdm

import train
from configuration_mf2 import MF2Config
from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.build import mfa as building
from mf2face.data.build.crops import BuildOptions, RowMaker, image_hash, near_pairs
from mf2face.data.build.landmark_cache import CachedFace
from mf2face.data.build.metadata import without_metadata
from mf2face.data.build.mfa import build_mfa, summary
from mf2face.data.build.splits import plan_mfa
from mf2face.data.corpora.frames import Video
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from mf2face.data.examples import MF2Examples
from mf2face.data.schema import check_leaks, described_labels, mfa_features
from mf2face.data.streaming import MF2StreamedExamples, stream_splits
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from processing_mf2 import MF2Processor
from processing_mf2.image_io import read_image
from processing_mf2.landmarks import template_landmarks


PEOPLE, EACH, SIDE = 6, 8, 96
OPTIONS = BuildOptions(landmarks="corpus", crop_size=64, shard_rows=12)
SIZES = {"train": 4, "validation": 1, "test": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn people, as anybody's own folder."""
    folder = tmp_path_factory.mktemp("own")
    truth, rows = synthetic_truth(PEOPLE * 16, "drawn"), []
    for person in range(PEOPLE):
        for index in range(16 * person, 16 * person + EACH):
            pixels, landmarks = draw_example(index, style="drawn", size=SIDE)
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
    assert rows.features == mfa_features()
    check_leaks(rows)
    assert described_labels(loaded["train"]) == LABEL_SETS["mfa"]
    where = {frames.row_id(row): row for row in range(len(frames))}
    for found in rows.remove_columns("image"):
        row = where[f"{found['corpus']}/{found['video']}/{found['frame']}"]
        assert found["au_labels"] == frames.au_labels[row].tolist() and found["emotion"] == frames.emotion[row]
        assert found["split"] == split[row] and found["landmark_source"] == "given" and found["licence"] == "mine"
        assert found["emotion_caption"] and found["caption_writer"] == "rule"
    first = datasets.load_dataset(str(out), data_files="data/train-00000-of-00003.parquet", cache_dir=str(tmp_path))
    assert len(first["train"]) == 11 and len(set(first["train"]["subject"])) > 2, "shards are random parts"
    card = (out / "README.md").read_text()
    assert "| images | 32 | 8 | 8 |" in card and "**Licence.** mine" in card and "across splits: none" in card
    assert report == json.loads((out / "build.json").read_text())
    train, counts = loaded["train"].remove_columns("image"), report["counts"]["train"]
    units = np.array(train["au_labels"][:])
    shown = {f"{name} active": (units[:, k] == 1).sum() for k, name in enumerate(LABEL_SETS["mfa"].action_units)}
    shown |= {name: train["emotion"][:].count(code) for code, name in enumerate(EMOTIONS)}
    assert counts == {"images": 32, "videos": 32, "people or videos": 4} | shown
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "build.json", "data", "dataset_infos.json"]


def test_crops_are_what_the_processor_would_cut_and_have_room_around(built, tmp_path):
    out, frames, _, _ = built
    processor = MF2Processor.for_model(MF2Config.from_size("tiny", label_set="mfa"))
    processor.image_processor.size = {"height": 64, "width": 64}
    processor.image_processor.normalize_per_image = False
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path))["test"]
    row = loaded[0]
    assert row["image"].size == (80, 80)
    place = [video.name for video in frames.videos].index(row["video"])
    whole = processor(frames.root / frames.image(place), landmarks=frames.landmarks[place])
    cut = processor(row["image"], landmarks=np.array(row["landmarks"]))
    assert np.allclose(whole["landmarks"], cut["landmarks"], atol=0.05)
    assert (whole["pixel_values"] - cut["pixel_values"]).abs().mean() < 0.03  # saved as JPEG in between
    streams = stream_splits(str(out))
    assert len(streams["test"]) == 8 and described_labels(streams["train"]) == LABEL_SETS["mfa"]
    example = next(iter(MF2StreamedExamples(streams["train"], processor, buffer=1)))
    first = MF2Examples(datasets.load_dataset(str(out), cache_dir=str(tmp_path))["train"], processor)[0]
    assert (example["pixel_values"] == first["pixel_values"]).all()


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
        seen, kept = (read_image(one).transpose(1, 2, 0) for one in (file, there))
        if Image.open(file).getexif().get(0x0112) != 6:
            assert (seen == kept).all()
        else:  # written anew, upright
            upright, lying = (cv2.resize(one, (64, 64)).astype(float) for one in (seen, np.rot90(seen)))
            assert np.abs(upright - kept).mean() < 5 < np.abs(lying - kept).mean()


class Killed(BaseException):
    pass


def on_call(monkeypatch, name, action):
    """action: given the number of each call of one of the builder's functions, and its first argument."""
    owner, calls = building.Path if name == "rename" else building, itertools.count()
    real = getattr(owner, name)

    def call(*arguments):
        action(next(calls), arguments[0])
        return real(*arguments)

    monkeypatch.setattr(owner, name, call)


def tables_written(monkeypatch):
    names = []
    on_call(monkeypatch, "write_table", lambda _, file: names.append(file.name))
    return names


def images_in(report):
    return sum(counts["images"] for counts in report["counts"].values())


def rows_in(folder):
    return sum(pq.read_metadata(file).num_rows for file in (folder / "data").iterdir())


@pytest.mark.parametrize(
    ("name", "at", "left"),
    [
        *(("write_table", 0, 5), ("write_table", 3, 2), ("write_card", 0, 0), ("rename", 0, 0), ("remove_work", 0, 0)),
        ("full disk", 2, 3),
    ],
)
def test_an_interrupted_build_goes_on_and_ends_the_same(built, tmp_path, monkeypatch, name, at, left):
    out, frames, split, report = built
    error = OSError(errno.ENOSPC, "No space left on device") if name == "full disk" else Killed()

    def interrupt(number, _):
        if number == at:
            raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        on_call(patch, "write_table" if name == "full disk" else name, interrupt)
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    if name == "full disk":
        assert caught.value.errno == errno.ENOSPC and "mfa.building: the disk is full" in str(caught.value)
    assert (tmp_path / "mfa").exists() == (name == "remove_work") and (tmp_path / ".mfa.building").is_dir()
    if name != "remove_work":
        with pytest.raises(ValueError, match=r"unfinished build of other options.*crop_size: 64"):
            build_mfa(frames, split, tmp_path / "mfa", replace(OPTIONS, crop_size=72))
    written = tables_written(monkeypatch)
    assert build_mfa(frames, split, tmp_path / "mfa", OPTIONS) == report and len(written) == left
    assert [path.name for path in tmp_path.iterdir()] == ["mfa"]
    first, second = (
        {file.name: file.read_bytes() for file in (one / "data").iterdir()} for one in (out, tmp_path / "mfa")
    )
    assert first == second
    with pytest.raises(FileExistsError, match="is there already"):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)


def test_a_damaged_plan_is_named_and_shards_without_one_are_built_again(built, tmp_path, monkeypatch):
    _, frames, split, _ = built
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        on_call(patch, "rename", lambda number, _: 1 / number)
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    plan = tmp_path / ".mfa.building" / "plan.json"
    for text in ("{", "[]"):
        plan.write_text(text)
        with pytest.raises(CorpusError, match=r"plan.json: got .*, expected the plan of a build. Remove"):
            build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    plan.unlink()
    report = build_mfa(frames, split, tmp_path / "mfa", replace(OPTIONS, shard_rows=5))
    assert rows_in(tmp_path / "mfa") == images_in(report) == 48


def test_unreadable_images_are_listed_repaired_or_skipped(own, tmp_path, monkeypatch):
    frames, split = plan(own)
    good = {name: (own / name).read_bytes() for name in ("0.jpg", "17.jpg")}
    for name, content in good.items():
        (own / name).write_bytes(content[:600])
    with pytest.raises(CorpusError, match=r"2 images that cannot be used .*left_out.txt lists them.*--skip_unreadable"):
        build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    listed = (tmp_path / ".mfa.building" / "left_out.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in sorted(listed)] == [[name, "unreadable"] for name in sorted(good)]
    report = build_mfa(frames, split, tmp_path / "skipped", replace(OPTIONS, skip_unreadable=True))
    assert report["left_out"] == 2 == report["left_out_because"]["cannot be read (--skip_unreadable)"]
    assert images_in(report) == 46 and summary(report, "out").endswith(
        "2 images were left out: 2 cannot be read (--skip_unreadable)"
    )
    for file in ("left_out.txt", "build.json", "README.md", "dataset_infos.json"):
        assert str(own) not in (tmp_path / "skipped" / file).read_text(), "a path of the builder's machine"
    for name, content in good.items():
        (own / name).write_bytes(content)
    written = tables_written(monkeypatch)
    report = build_mfa(frames, split, tmp_path / "mfa", OPTIONS)
    assert 1 <= len(written) <= 2 and report["left_out"] == 0


@pytest.mark.parametrize("near", [None, "drop", "raise", "tell"])
def test_a_copy_in_another_split_is_listed_and_dropped_only_when_asked(own, tmp_path, near):
    frames, split = plan(own)
    held = next(frames.image(row) for row in range(len(frames)) if split[row] == "test")
    taught = next(frames.image(row) for row in range(len(frames)) if split[row] == "train")
    (own / taught).write_bytes((own / held).read_bytes())
    places = {frames.image(row): row for row in range(len(frames))}
    frames.landmarks[places[taught]] = frames.landmarks[places[held]]
    options = OPTIONS if near is None else replace(OPTIONS, near=near)
    if near == "raise":
        with pytest.raises(ValueError, match=r"1 images are all but identical to one in another split: own/"):
            build_mfa(frames, split, tmp_path / "mfa", options)
        return
    report = build_mfa(frames, split, tmp_path / "mfa", options)
    assert report["near_identical"] == [f"own/{taught[:-4]}/0 (train) repeats own/{held[:-4]}/0 (test)"]
    assert images_in(report) == (47 if near == "drop" else 48)
    assert ("--near drop" in summary(report, "out")) == (near != "drop")
    assert rows_in(tmp_path / "mfa") == images_in(report)


def test_hashes_find_copies_and_leave_other_people_alone():
    faces = [draw_example(16 * person + frame, style="drawn", size=112)[0] for person in range(12) for frame in (0, 9)]
    copies = []
    for face in faces:
        small = cv2.resize(face, (80, 80), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])
        copies.append(image_hash(cv2.imdecode(encoded, cv2.IMREAD_COLOR)))
    hashes, copies = np.array([image_hash(face) for face in faces]), np.array(copies)
    pairs = {tuple(pair) for pair in near_pairs(copies, hashes).tolist()}
    assert {(k, k) for k in range(len(faces))} <= pairs
    assert {(a // 2, b // 2) for a, b in pairs} == {(k, k) for k in range(12)}
    many = np.tile(hashes, (100, 1))  # more than a block
    assert len(near_pairs(copies, many)) == 100 * len(pairs) and near_pairs(copies[:0], many).shape == (0, 2)


@pytest.mark.usefixtures("training_alone")
def test_pictures_with_emotions_alone_are_built_and_trained_in_the_splits_that_are_written(own, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [json.loads(line) for line in (own / "labels.jsonl").read_text().splitlines()][::2]
    (own / "labels.jsonl").unlink()
    emotions, splits = LABEL_SETS["raf_db"].emotions, ("train", "train", "val", "test", "train", "train")
    lines = [
        f"{row['image']},{emotions[number % len(emotions)]},{row['subject']},{splits[int(row['subject'][1:])]}"
        for number, row in enumerate(rows)
    ]
    (own / "labels.csv").write_text("\n".join(["image,emotion,subject,split", *lines]))
    frames, split = plan_mfa(read_corpus("own", own, label_set="raf_db"), require="emotion")
    assert set(split) == {"train", "validation", "test"}
    assert split == [frames.videos[place].official for place in frames.video]
    build_mfa(frames, split, tmp_path / "mfa", BuildOptions(landmarks="template", crop_size=64, near="tell"))
    loaded = datasets.load_dataset(str(tmp_path / "mfa"), cache_dir=str(tmp_path / "loaded"))
    assert described_labels(loaded["train"]) == LABEL_SETS["raf_db"]
    assert sum(map(len, loaded.values())) == len(frames) and loaded["train"].features == mfa_features("raf_db")
    options = f"--dataset {tmp_path / 'mfa'} --label_set raf_db --output_dir {tmp_path / 'run'} --use_cpu True"
    options += " --disable_tqdm True --per_device_train_batch_size 8 --max_steps 2 --eval_strategy no"
    scores = train.main([*options.split(), "--save_strategy", "no", "--load_best_model_at_end", "False"])
    assert scores["test_images"] == split.count("test") and "emotion_top1" in scores


def test_mistakes(built, tmp_path):
    _, frames, split, _ = built
    with pytest.raises(ValueError, match="cache: got none, expected a LandmarkCache"):
        build_mfa(frames, split, tmp_path / "mfa")
    with pytest.raises(ValueError, match="split: got 2"):
        build_mfa(frames, ["train", "test"], tmp_path / "mfa", OPTIONS)
    mixed = ["test" if row == 3 else name for row, name in enumerate(split)]
    with pytest.raises(CorpusError, match="people or videos in two splits, such as p"):
        build_mfa(frames, mixed, tmp_path / "mfa", OPTIONS)
    assert build_mfa(frames, mixed, tmp_path / "mfa", replace(OPTIONS, near="tell"))["in_two_splits"]
    for wrong in ({"landmarks": "none"}, {"margin": -1}, {"crop_size": 8}, {"near": "yes"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got"):
            BuildOptions(**wrong)
    (tmp_path / "Anger").mkdir()
    cv2.imwrite(str(tmp_path / "Anger" / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "Anger" / "a.jpg").rename(tmp_path / "Anger" / os.fsdecode(b"caf\xe9.jpg"))
    (tmp_path / "mfa").rename(tmp_path / ".mfa")
    with pytest.raises(CorpusError, match=r"image: got 'Anger/caf.*\.jpg', expected a name in UTF-8"):
        build_mfa(read_corpus("own", tmp_path), ["train"], tmp_path / "latin", replace(OPTIONS, landmarks="template"))


class Cache:
    """In place of a detector: the first image has a face, the second a doubtful one, the third none."""

    def __init__(self, landmarks):
        sure, unsure = np.ones(68, np.float32), np.full(68, 0.1, np.float32)
        self.known = [CachedFace(landmarks, sure, sure[:4], 0.9), CachedFace(landmarks, unsure, sure[:4], 0.9), None]

    def faces(self, images, pixels):
        assert len(images) == len(pixels)
        return self.known[: len(images)]


@pytest.fixture
def frames(tmp_path):
    pixels, landmarks = draw_example(3, style="drawn", size=120)
    for number in range(1, 4):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), pixels[..., ::-1])
    points = np.array([landmarks, landmarks[:, ::-1], np.full((68, 2), np.nan)], np.float32)
    made = make_frames([3], np.array([1, 2, 3]))
    return replace(made, root=tmp_path, videos=[Video("v", "s", ".", 1, ".jpg")], landmarks=points)


def make(frames, cache=None, **options):
    """Rows, their places in the frames, and the images left out with their kind of problem."""
    with RowMaker(frames, ["train"] * 3, BuildOptions(**{"crop_size": 64, **options}), cache) as maker:
        rows, hashes, kept, problems = maker.make(np.arange(3), tqdm(disable=True))
    assert len(rows) == len(hashes) == len(kept)
    Dataset.from_list(rows, features=mfa_features())
    return rows, kept.tolist(), [(problem.image[2:], problem.kind) for problem in problems]


def test_landmarks_of_the_corpus_are_checked(frames):
    rows, kept, problems = make(frames, landmarks="corpus")
    assert kept == [0] and rows[0]["landmark_source"] == "given"
    assert problems == [("2.jpg", "landmarks"), ("3.jpg", "no face")]


def test_aligned_pictures_have_the_landmarks_of_their_corpus_s_template(frames):
    theirs = replace(frames, template="insightface112")
    for options, expected in (("template", "insightface112"), ("ffhq", "ffhq")):
        row = make(theirs, landmarks=options)[0][0]
        size = Image.open(io.BytesIO(row["image"]["bytes"])).size
        assert row["landmark_source"] == expected
        assert np.allclose(row["landmarks"], template_landmarks(*size[::-1], expected), atol=1e-4)


def test_a_detector_that_is_unsure_found_nothing(frames):
    cache = Cache(frames.landmarks[0])
    assert make(frames, cache)[1:] == ([0, 1], [("3.jpg", "no face")])
    assert make(frames, cache, min_confidence=0.5)[1:] == ([0], [("2.jpg", "no face"), ("3.jpg", "no face")])
    rows, kept, _ = make(frames, cache, min_confidence=0.5, on_no_face="template")
    assert [row["landmark_source"] for row in rows] == ["detector", "template", "template"] and kept == [0, 1, 2]


def test_captions_are_left_out_when_asked(frames):
    bare = make(frames, landmarks="template", captions=False)[0]
    assert {row["emotion_caption"] for row in bare} == {""} == {row["caption_writer"] for row in bare}


NOTE = b"secret-of-the-owner"


def exif(orientation=1):
    data = Image.Exif()
    data[0x010E], data[0x0112] = NOTE.decode(), orientation
    return data


def noise():
    rng = np.random.default_rng(0)
    return Image.fromarray(np.kron(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8)))


def saved(format="JPEG", image=None, **options):
    file = io.BytesIO()
    (image or noise()).save(file, format, **options)
    return file.getvalue()


def png(**options):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", NOTE.decode())
    info.add_text("XML:com.adobe.xmp", NOTE.decode(), zip=False)
    info.add_itxt("Author", NOTE.decode())
    return saved("PNG", exif=exif(), pnginfo=info, **options)


FILES = {
    "jpeg": saved(exif=exif(), comment=NOTE, xmp=NOTE),
    "progressive": saved(progressive=True, exif=exif()),
    "restarts": saved(restart_marker_blocks=2, comment=NOTE),
    "grey": saved(image=noise().convert("L"), exif=exif()),
    "cmyk": saved(image=noise().convert("CMYK"), exif=exif()),
    "profile": saved(icc_profile=NOTE * 9000),
    "several": saved("MPO", save_all=True, append_images=[noise()], exif=exif()),
    "png": png(),
    "palette": png(image=noise().convert("P")),
    "transparent": png(image=noise().convert("RGBA")),
    "animated": png(save_all=True, append_images=[noise().rotate(90)]),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_stay_and_everything_said_beside_them_goes(name):
    content = FILES[name] + b"\0" + NOTE
    stripped = without_metadata(content)
    assert NOTE in content and NOTE not in stripped
    assert not {b"Exif", b"http:", b"acTL", b"eXIf", b"tEXt", b"iTXt", b"MPF"} & {
        stripped[k : k + 4] for k in range(999)
    }
    assert (read_image(stripped) == read_image(FILES[name])).all()
    assert without_metadata(stripped) == stripped
    assert Image.open(io.BytesIO(stripped)).info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"} | {
        *("progressive", "progression", "adobe", "adobe_transform", "transparency")
    }


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png"])
def test_a_file_that_breaks_off_is_left_alone(name):
    content = FILES[name].rstrip(NOTE)
    for size in range(0, len(content) - 2, 37):
        assert without_metadata(content[:size]) is None, size
    assert without_metadata(saved("BMP")) is None and without_metadata(b"") is None
