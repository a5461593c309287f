"""Licensed corpora in their own files: what is read, and how errors name file, line and field."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus_frames import AUS, TRACKS, all_frames, make_frames, write_aff_wild2

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.corpora.frames import Video, every_and_changes, frames_on_disk, keep_labelled, stills
from mf2face.data.corpora.images import AffectNet
from mf2face.data.corpora.label_files import CorpusError, Listing, csv_rows, integer_table, read_text
from mf2face.data.corpora.read import SOURCES, protocol, read_corpus
from mf2face.data.corpora.videos import DISFA, FOLDS


def refused(match, *arguments, error=CorpusError, **options):
    with pytest.raises(error, match=match):
        read_corpus(*arguments, **options)


def write_lines(file: Path, *lines: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(line if isinstance(line, str) else ",".join(map(str, line)) for line in lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,0\n1\n", r"labels.txt, line 3: got 1 values \('1'\), expected 2 values: AU1, AU2. Fetch it again"),
        ("1,0\n1,", r"line 3, AU2: got '', expected a whole number"),
        ("1,0\n\n1,0", r"line 3: got 1 values"),
        ("1,0\n1,0.5", r"line 3, AU2: got '0\.5', expected a whole number"),
        ("1,0\n-,1", r"line 3, AU1: got '-'"),
        ("1,0\n1,0\n1,2", r"line 4, AU2: got 2, expected one of -1, 0, 1"),
        ("1 0,1", r"line 2, AU1: got '1 0'"),
        ("99999999999,1", r"line 2, AU1: got '99999999999'"),
    ],
)
def test_a_table_is_read_or_its_first_wrong_line_is_named(tmp_path, text, message):
    assert integer_table(tmp_path, "1, 0\n-1 ,0\n\n", ("AU1", "AU2"), (-1, 0, 1), "").tolist() == [[1, 0], [-1, 0]]
    with pytest.raises(CorpusError, match=message):
        integer_table(tmp_path / "labels.txt", text, ("AU1", "AU2"), (-1, 0, 1), "Fetch it again", first_line=2)


def test_texts_are_utf8(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_bytes("\ufeffimage,emotion\r\nä.jpg,Fear\r\n".encode())
    assert read_text(file) == "image,emotion\nä.jpg,Fear\n"
    file.write_bytes(b"image\na.jpg\n\xe4.jpg\n")
    with pytest.raises(CorpusError, match=r"labels.csv, line 3: got the byte 0xe4, expected UTF-8 text"):
        read_text(file)
    with pytest.raises(CorpusError, match=r"No such file.*expected a readable file"):
        read_text(tmp_path / "none.csv")
    with pytest.raises(CorpusError, match="line 2: got unexpected end of data"):
        list(csv_rows(file, 'a,b\n"c,d\n'))


@pytest.mark.parametrize(
    "name", ["a/../../b.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "", "a\0.jpg", "https://a.org/b.jpg"]
)
def test_images_outside_the_folder_or_listed_twice_are_refused(tmp_path, name):
    listing = Listing(tmp_path / "labels.csv")
    with pytest.raises(CorpusError, match=r"line 7, image: got .*expected a path below the folder"):
        listing.path(name, 7)
    assert [listing.path(text, 1) for text in (" a/b..c.jpg ", "a\\b.jpg")] == ["a/b..c.jpg", "a/b.jpg"]
    with pytest.raises(CorpusError, match=r"line 5, image: got 'a/b.jpg' again, expected each once.*line 1"):
        listing.path("a/b.jpg", 5)


def test_labels_asked_for_decide_what_is_kept():
    units = np.zeros((4, 12), np.int8)
    units[1:3] = -1
    units[2, 5] = 1  # one known AU is enough
    frames = make_frames([4], np.array([0, 1, 2, -1]), units)
    kept = {name: keep_labelled(frames, name).frame.tolist() for name in ("both", "au", "emotion", "any")}
    assert kept == {"both": [1, 3], "au": [1, 3, 4], "emotion": [1, 2, 3], "any": [1, 2, 3, 4]}
    assert keep_labelled(frames).counts == {"without_both_labels": 2}
    with pytest.raises(CorpusError, match=r"no image of 1 with the labels asked for.*--require"):
        keep_labelled(frames.select(np.array([1])))
    with pytest.raises(ValueError, match="require: got 'all'"):
        keep_labelled(frames, "all")


def test_every_tenth_frame_and_every_change_by_hand():
    emotion = np.zeros(30, int)
    emotion[[13, 14]] = 4  # frames 14 and 15 of the first video: a change to it, and one back at frame 16
    kept = every_and_changes(make_frames([25, 5], emotion))
    assert kept.frame[kept.video == 0].tolist() == [1, 11, 14, 16, 21]
    assert kept.frame[kept.video == 1].tolist() == [1]  # a new video begins anew
    assert kept.counts["left_out_by_sampling"] == 24


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00002.jpg", "00001.jpg", "00010.jpg"], ([1, 2, 10], 5, ".jpg")),
        (["9.png", "10.png"], ([9, 10], 1, ".png")),
        (["00002.jpg", "00001.jpg", ".DS_Store", "Thumbs.db"], ([1, 2], 5, ".jpg")),
        (["notes.txt"], ([], 1, ".jpg")),
        (["1.jpg", "1.png"], "two images of frame 1"),
        (["001.jpg", "1.jpg"], "two images of frame 1"),
        (["001.jpg", "2.jpg"], "got '001.jpg', expected 0.jpg and so on"),
        (["1.jpg", "2.png"], "got '2.png', expected 0.jpg"),
    ],
)
def test_frames_are_read_whatever_their_digits_and_mixed_names_are_refused(names, expected):
    if isinstance(expected, str):
        with pytest.raises(CorpusError, match=expected):
            frames_on_disk(Path("v"), lambda folder: names)
        return
    numbers, digits, ending = frames_on_disk(Path("v"), lambda folder: names)
    assert (numbers.tolist(), digits, ending) == expected
    video = Video("v", "v", "v", digits, ending)
    assert {video.image(int(n)) for n in numbers} == {f"v/{name}" for name in names if name[0].isdigit()}


def test_pictures_are_listed_once_a_folder():
    asked = []

    def list_folder(folder):
        asked.append(folder.name)
        return ["a.jpg", "b.jpg"]

    videos, there = stills(["x/a.jpg", "x/b.jpg", "x/c.jpg"], Path("r"), list_folder, subjects=["s", "", "s"])
    assert asked == ["x"] and there.tolist() == [True, True, False]
    assert [video.subject for video in videos] == ["s", "x/b", "s"] and videos[0].image(0) == "x/a.jpg"
    with pytest.raises(CorpusError, match=r"differ in their ending alone: x/a\.\*"):
        stills(["x/a.jpg", "x/a.png"], Path("r"), list_folder)


@pytest.fixture
def aff_wild2(tmp_path):
    units = np.tile(np.arange(12) % 3 - 1, (6, 1))
    write_aff_wild2(tmp_path, {"1-30_left": (units, np.array([0, 7, -1, 4, 4, 4])), "2": (units, None)})
    write_aff_wild2(tmp_path, {"3": (None, np.array([3, -1]))}, "Validation_Set")
    return tmp_path


def test_aff_wild2_line_i_is_image_i_and_unknown_is_masked_an_au(aff_wild2):
    present = {"1-30_left": [1, 2, 3, 6], "2": [1, 2, 3, 4, 5, 6], "3": [1, 2]}
    names = {name: [f"{number:05d}.jpg" for number in numbers] for name, numbers in present.items()}
    frames = read_corpus("aff_wild2", aff_wild2, list_folder=lambda folder: names[folder.name])
    assert frames.template == "insightface112"
    assert frames.image(3) == "cropped_aligned/1-30_left/00006.jpg" and frames.row_id(3) == "aff_wild2/1-30_left/6"
    assert frames.emotion.tolist() == [0, 7, -1, 4] + [-1] * 6 + [3]
    assert frames.au_labels[0].tolist() == [-1, 0, 1] * 4
    assert (frames.au_labels[-1] == -1).all()  # the other track does not know this video
    videos = [("1-30_left", "1-30", "train"), ("2", "2", "train"), ("3", "3", "validation")]
    assert [(v.name, v.subject, v.official) for v in frames.videos] == videos
    assert frames.counts == {"videos": 3, "label_lines": 14, "lines_without_a_label": 1, "images_missing": 2}
    assert list(frames.missing) == ["cropped_aligned/1-30_left/00004.jpg", "cropped_aligned/1-30_left/00005.jpg"]
    other = read_corpus("aff_wild2", aff_wild2, label_set="disfa", list_folder=all_frames(6), extra_frames=4)
    own = dict(zip(AUS, [-1, 0, 1] * 4, strict=True))
    assert other.au_labels[0].tolist() == [own.get(name, -1) for name in LABEL_SETS["disfa"].action_units]
    assert "AU9" not in own and (other.emotion == -1).all()


@pytest.mark.parametrize(
    ("track", "line", "text", "message"),
    [
        ("AU", 4, "0,1", r"1-30_left.txt, line 4: got 2 values"),
        ("AU", 3, ",".join(["2"] * 12), r"line 3, AU1: got 2, expected one of -1, 0, 1"),
        ("EXPR", 2, "8", r"line 2, expression: got 8, expected one of -1, 0, .*8 emotions"),
        ("AU", 1, "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25", r"column 5: got 'AU12', .*2022"),
        ("EXPR", 1, "Neutral,Anger,Disgust,Feer", r"line 1, column 4: got 'Feer', expected 'Fear'. Did you mean"),
        ("EXPR", 1, "Neutral", r"line 1: got 1 columns, expected 8"),
        ("EXPR", 7, "", r"got 6 lines of labels, expected 5, as .*EXPR"),
    ],
)
def test_wrong_label_files_of_aff_wild2(aff_wild2, track, line, text, message):
    file = aff_wild2 / "annotations" / TRACKS[track] / "Train_Set" / "1-30_left.txt"
    lines = file.read_text().split("\n")
    lines[line - 1] = text
    file.write_text("\n".join(lines))
    refused(message, "aff_wild2", aff_wild2, list_folder=all_frames(2))


def test_images_that_do_not_fit_the_labels(aff_wild2, tmp_path):
    seven = all_frames(7)
    refused(r"labels up to frame 6, .*frames up to 7.*extra_frames=1", "aff_wild2", aff_wild2, list_folder=seven)
    read_corpus("aff_wild2", aff_wild2, list_folder=all_frames(7), extra_frames=5)
    refused("none of 13 listed images on the disk", "aff_wild2", aff_wild2)
    refused("none of its label folders, expected AU_Detection", "aff_wild2", tmp_path / "cropped_aligned")
    refused("nothing there, expected a folder: the aff_wild2 corpus", "aff_wild2", tmp_path / "nowhere")
    again = aff_wild2 / "annotations" / TRACKS["AU"] / "Validation_Set" / "2.txt"
    again.write_text("")
    refused("2.txt: got labels again", "aff_wild2", aff_wild2)
    again.unlink()
    os.rmdir(aff_wild2 / "cropped_aligned")
    refused("nothing there, expected a folder: the images", "aff_wild2", aff_wild2)
    (aff_wild2 / "cropped_aligned").symlink_to("cropped_aligned")
    refused("expected a folder: the images", "aff_wild2", aff_wild2)


def test_disfa_is_active_from_two_and_has_its_folds(tmp_path):
    rng, labels = np.random.default_rng(0), tmp_path / "ActionUnit_Labels"
    for subject in ("SN001", "SN013", "SN003"):
        for name in DISFA.action_units:
            lines = enumerate(rng.integers(0, 6, 20), 1)
            write_lines(labels / subject / f"{subject}_{name.lower()}.txt", *lines)
    (tmp_path / "Images").mkdir()
    frames = read_corpus("disfa", tmp_path, list_folder=all_frames(20))
    assert frames.au_labels.shape == (60, 8) and (frames.emotion == -1).all()
    assert np.array_equal(frames.au_labels, frames.au_intensities >= 2)
    low = read_corpus("disfa", tmp_path, list_folder=all_frames(20), threshold=1, label_set="mfa")
    assert (low.au_labels[:, AUS.index("AU7")] == -1).all() and (low.au_intensities[:, AUS.index("AU7")] == -1).all()
    au12 = LABEL_SETS["disfa"].action_units.index("AU12")
    assert np.array_equal(low.au_labels[:, AUS.index("AU12")], frames.au_intensities[:, au12] >= 1)
    assert [video.official for video in frames.videos] == ["fold 1", "fold 3", "fold 2"]
    assert sorted(Counter(FOLDS["disfa"].values()).values()) == [9, 9, 9]
    for text, message in {
        "1,0\n2,6": "line 2, intensity: got 6, expected 0 to 5",
        "1,0\n2,1": "got 2 lines, expected 20 lines of the same frames",
        "frame,intensity\n1,0": "line 1, frame: got 'frame', expected a whole number",
    }.items():
        (labels / "SN003" / "SN003_au26.txt").write_text(text)
        refused(f"SN003_au26.txt.*{message}", "disfa", tmp_path, list_folder=all_frames(20))
    refused(r"threshold: got 9", "disfa", tmp_path, threshold=9, error=ValueError)
    refused(r"disfa: got the options \['treshold'\]", "disfa", tmp_path, treshold=1, error=ValueError)
    refused("corpus: got 'affwild', expected one of aff_wild2, disfa", "affwild", tmp_path, error=ValueError)


def test_bp4d_codes_nine_as_unknown(tmp_path):
    (tmp_path / "2D+3D").mkdir()
    header = ["0", *map(str, range(1, 100))]
    rows = [[2440 + k, *([k % 2] * 98), 9] for k in range(4)]
    rows[2][7] = 9  # AU7
    file = write_lines(tmp_path / "AUCoding" / "AU_OCC" / "F001_T1.csv", header, *rows)
    frames = read_corpus("bp4d", tmp_path, list_folder=lambda folder: [f"{n}.jpg" for n in range(2300, 2443)])
    assert frames.frame.tolist() == [2440, 2441, 2442] and frames.image(0) == "2D+3D/F001/T1/2440.jpg"
    assert frames.au_labels[1].tolist() == [1] * 12 and frames.counts["images_missing"] == 1
    assert frames.au_labels[2].tolist() == [0] * 4 + [-1] + [0] * 7
    assert frames.videos[0].subject == "F001" and frames.videos[0].official == "fold 1"
    assert sorted(Counter(FOLDS["bp4d"].values()).values()) == [13, 14, 14]
    rows[3][12] = 5
    write_lines(file, header, *rows)
    refused("F001_T1.csv, line 5, AU12: got 5, expected 0, 1, or 9", "bp4d", tmp_path)
    for text, message in {
        "frame,AU1,AU_2\n1,0,0": r"line 1, column 3: got 'AU_2', expected an AU's number",
        "frame,77\n1,0": "got columns of AU77, expected some of AU1, AU2",
        "frame,1\n5,0\n5,0": "line 3, frame: got 5, expected a later frame",
        "frame,1\n-2,0\n5,0": "line 2, frame: got -2, expected a frame number from 0",
        "frame,1,AU01\n5,0,1": "line 1: got AU1 twice, expected each AU in one column",
    }.items():
        file.write_text(text)
        refused(message, "bp4d", tmp_path)


def test_gft_takes_its_test_list_from_the_user(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("001A", "001B"):
        write_lines(tmp_path / "labels" / f"{name}.csv", "frame,1,12", "1,0,1", "2,9,1")
    frames = read_corpus("gft", tmp_path, list_folder=all_frames(9), test_subjects=["001B"])
    assert [video.official for video in frames.videos] == ["train", "test"]
    assert frames.au_labels[1].tolist() == [-1] * 5 + [1] + [-1] * 4
    refused(r"test_subjects: got \['9'\], expected subjects", "gft", tmp_path, test_subjects=["9"], error=ValueError)


def everything(folder: Path):
    """In place of pictures: every image that a label file lists exists."""

    class Anything(frozenset):
        def __contains__(self, name):
            return True

    return Anything()


def test_raf_au_merges_sides_or_leaves_them_unknown(tmp_path):
    def read(*lines, **options):
        write_lines(tmp_path / "RAFAU_label.txt", *lines)
        names = [f"{n:04d}_aligned.jpg" for n in range(1, 10)]
        return read_corpus("raf_au", tmp_path, list_folder=lambda folder: names, **options)

    (tmp_path / "aligned").mkdir()
    lines = ("0001.jpg 17+B22+T24 ", "0002.jpg null", "0003.jpg L12+R12+L4+26", "9999.jpg 1")
    frames, units = read(*lines), LABEL_SETS["raf_au"].action_units
    active = [{name for name, label in zip(units, row, strict=True) if label == 1} for row in frames.au_labels]
    assert active == [{"AU17", "AU22", "AU24"}, set(), {"AU12", "AU4", "AU26"}]
    assert (frames.au_labels >= 0).all() and frames.image(0) == "aligned/0001_aligned.jpg"
    assert frames.counts["images_missing"] == 1 and frames.missing == ["aligned/9999_aligned.jpg"]
    apart = read(*lines, sides=False).au_labels
    assert apart[2][units.index("AU12")] == 1 and apart[2][units.index("AU4")] == -1
    assert read(*lines, label_set="mfa").au_labels.shape == (3, 12)
    for wrong, message in {
        "0001.jpg 17+X22": "line 1, AUs: got 'X22', expected such as 17, B22 or T24",
        "0001.jpg": "line 1: got '0001.jpg', expected a picture and its AUs",
    }.items():
        with pytest.raises(CorpusError, match=message):
            read(wrong)


def test_emotionet_codes_999_as_unknown(tmp_path):
    (tmp_path / "images").mkdir()
    rows = ("'http://a.org/x/N_1.jpg',y,1,999,0", "'http://a/N_2.jpg',y,0,,1")
    file = write_lines(tmp_path / "EmotioNet_FACS_aws.csv", "URL,URL orig,'AU 1','AU 2','AU 12'", *rows)
    frames = read_corpus("emotionet", tmp_path, list_folder=everything)
    assert frames.image(0) == "images/N_1.jpg"
    assert frames.au_labels[:, :2].tolist() == [[1, -1], [0, -1]] and (frames.au_labels[:, 2] == -1).all()
    for text, message in {
        "URL,'AU 1'\n'http://a/N_1.jpg',2\n": r"line 2, AU1: got '2', expected 0, 1, 999",
        "URL,'AU 1'\n'http://a/N_1.jpg'\n": "line 2: got 1 fields, expected 2",
        "picture,AU 1\n": "got picture, AU 1, expected URL",
    }.items():
        file.write_text(text)
        refused(message, "emotionet", tmp_path)


def test_affectnet_of_2017(tmp_path):
    def write(*rows):
        write_lines(tmp_path / "training.csv", *rows)

    points, header = ";".join(f"{value:.2f}" for value in np.arange(136) / 2), AffectNet.columns
    (tmp_path / AffectNet.images).mkdir()
    write(header, *(f"1/{code}.jpg,0,0,9,9,{points},{code},0.5,-0.5" for code in range(11)))
    write_lines(tmp_path / "validation.csv", "2/v.jpg,0,0,9,9,,1,0,0")  # without a header, as it is given out
    frames, names = read_corpus("affectnet", tmp_path, list_folder=everything), LABEL_SETS["affectnet"].emotions
    assert [names[code] if code >= 0 else None for code in frames.emotion] == [*names, None, None, "Happiness"]
    assert frames.counts["pictures_without_a_face"] == 1 and frames.videos[-1].official == "validation"
    assert np.allclose(frames.landmarks[0].reshape(-1), np.arange(136) / 2 + 0.5)
    assert np.isnan(frames.landmarks[-1]).all()
    mapped = read_corpus("affectnet", tmp_path, label_set="mfa", list_folder=everything).emotion
    assert [EMOTIONS[code] if code >= 0 else None for code in mapped[:8]] == [*names[:7], None]  # no Contempt in MFA
    for row, message in {
        f"1/a.jpg,0,0,9,9,{points},11,0,0": "line 2, expression: got '11', expected 0 to 10",
        "1/a.jpg,0,0,9,9,1;2;3,1,0,0": "line 2, landmarks: got 3 values, expected 136 numbers",
        "1/a.jpg,0,0": "line 2: got 3 fields, expected 9",
        "/abs/a.jpg,0,0,9,9,,1,0,0": "line 2, subDirectory_filePath: got '/abs/a.jpg'",
    }.items():
        write(header, row)
        refused(message, "affectnet", tmp_path, list_folder=everything)
    write("subDirectory_filepath,face_x")
    refused("line 1, column 1: got 'subDirectory_filepath'.*Did you mean", "affectnet", tmp_path)


def test_affectnet_of_2021(tmp_path):
    for split, numbers in (("train_set", (0, 10)), ("val_set", (3,))):
        (tmp_path / split / "annotations").mkdir(parents=True)
        (tmp_path / split / "images").mkdir()
        for number in numbers:
            np.save(tmp_path / split / "annotations" / f"{number}_exp.npy", np.array(str(number % 8)))
            np.save(tmp_path / split / "annotations" / f"{number}_lnd.npy", np.arange(136.0))
    frames = read_corpus("affectnet", tmp_path, list_folder=everything)
    assert frames.emotion.tolist() == [0, 2, 3] and frames.image(2) == "val_set/images/3.jpg"
    assert [video.official for video in frames.videos] == ["train", "train", "validation"]
    assert np.allclose(frames.landmarks[1, 0], (0.5, 1.5))
    np.save(tmp_path / "train_set" / "annotations" / "0_exp.npy", np.array([{}]), allow_pickle=True)
    refused(r"0_exp.npy: got Object arrays cannot be loaded.*can run code", "affectnet", tmp_path)


@pytest.mark.parametrize(("corpus", "part", "codes"), [("raf_db", "basic", 7), ("raf_db_compound", "compound", 11)])
def test_raf_db(tmp_path, corpus, part, codes):
    (tmp_path / part / "Image/aligned").mkdir(parents=True)
    file = tmp_path / part / "EmoLabel" / "list_patition_label.txt"
    write_lines(file, *(f"train_{code:05d}.jpg {code}" for code in range(1, codes + 1)), "test_0001.jpg 1")
    frames = read_corpus(corpus, tmp_path, list_folder=everything)
    assert frames.emotion.tolist() == [*range(codes), 0] and frames.videos[-1].official == "test"
    assert frames.image(0) == f"{part}/Image/aligned/train_00001_aligned.jpg"
    if part == "basic":
        mapped = read_corpus(corpus, tmp_path, list_folder=everything, label_set="mfa")
        assert [EMOTIONS[code] for code in mapped.emotion[:7]] == list(LABEL_SETS["raf_db"].emotions)
    write_lines(file, f"train_1.jpg {codes + 1}")
    refused(f"line 1: got 'train_1.jpg {codes + 1}', expected a picture and 1 to {codes}", corpus, tmp_path)
    write_lines(file, "face_1.jpg 1")
    refused("expected a name that begins with train_ or test_", corpus, tmp_path)


@pytest.mark.parametrize("corpus", list(SOURCES))
def test_an_empty_folder_is_an_error_that_says_what_belongs_into_it(corpus, tmp_path):
    assert (corpus == "own" or corpus in LABEL_SETS) and len(protocol(corpus)) > 200
    refused(r"got .*, expected .*", corpus, tmp_path)
