"""Rendered faces: each action unit moves its own region on its own side, landmarks are exact, truth agrees with it."""

import errno
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LANDMARK_MIRROR, LabelSet
from mf2face.data.schema import check_leaks, mfa_features
from mf2face.data.synthetic import baking, subjects
from mf2face.data.synthetic.actions import RENDERED_AUS, shape_weights
from mf2face.data.synthetic.baking import bake, write_bank
from mf2face.data.synthetic.bank import PARTS, load_bank
from mf2face.data.synthetic.faces import TOKENS, MFASynthetic, draw_example, truth_features
from mf2face.data.synthetic.people import EARRINGS
from mf2face.data.synthetic.places import RENDERED_STYLES, Shot, draw_shot
from mf2face.data.synthetic.rendering import SEEN, Sitter, render_face


# Where each action unit must be seen: around these landmarks.
WHERE = {
    **dict.fromkeys(("AU1", "AU4"), (20, 21, 22, 23)),
    **{"AU2": (17, 18, 25, 26), "AU5": (37, 38, 43, 44), "AU6": (40, 41, 46, 47), "AU7": (*range(36, 48),)},
    **{"AU9": (21, 22, 28, 29, 31, 35, 49, 53), "AU10": (31, 35, 49, 51, 53), "AU43": (*range(36, 48),)},
    **dict.fromkeys(("AU12", "AU14", "AU15", "AU20"), (48, 54)),
    **dict.fromkeys(("AU16", "AU17", "AU26", "AU27"), (56, 57, 58, 8)),
    **dict.fromkeys(("AU18", "AU22", "AU23", "AU24", "AU25"), (*range(48, 68),)),
}


@pytest.fixture(scope="module")
def sitters() -> list[Sitter]:
    return [Sitter(subjects.subject(0, "studio", number), 112) for number in (0, 1)]


def test_the_shipped_bank_is_whole():
    bank = load_bank()
    assert len(bank.heads) >= 2000 and len(bank.actions) == 52 and np.isfinite(bank.components).all()
    assert set(np.unique(bank.parts)) == set(range(len(PARTS)))
    vertices, weights = bank.landmarks
    landmarks = (bank.mean[vertices] * weights[..., None]).sum(1)
    assert np.abs(landmarks - landmarks[list(LANDMARK_MIRROR)] * (-1, 1, 1))[:, :2].max() < 0.06
    folder = Path(load_bank.__wrapped__.__code__.co_filename).parent
    assert (folder / "heads.safetensors").stat().st_size < 4e6
    assert json.loads((folder / "heads.json").read_text())["licence"] == "CC0-1.0"


@pytest.mark.parametrize("damage", ["missing", "bytes", "version"])
def test_a_bank_that_is_missing_damaged_or_of_another_version(damage, tmp_path):
    folder = Path(load_bank.__wrapped__.__code__.co_filename).parent
    for name in ("heads.json", "heads.safetensors"):
        shutil.copy(folder / name, tmp_path)
    if damage == "missing":
        (tmp_path / "heads.safetensors").unlink()
    elif damage == "bytes":
        content = bytearray((tmp_path / "heads.safetensors").read_bytes())
        content[100_000] ^= 1
        (tmp_path / "heads.safetensors").write_bytes(content)
    else:
        about = json.loads((tmp_path / "heads.json").read_text())
        (tmp_path / "heads.json").write_text(json.dumps({**about, "version": 99}))
    with pytest.raises((OSError, ValueError), match=r"render\]"):
        load_bank(tmp_path)


def test_baking_without_anny_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(ImportError, match=r"mf2face\[render\]"):
        bake(tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_banks_baked_at_once_leave_a_whole_one_and_a_full_disk_leaves_the_old_one(monkeypatch, tmp_path):
    folder = Path(load_bank.__wrapped__.__code__.co_filename).parent
    about, tensors = json.loads((folder / "heads.json").read_text()), load_file(folder / "heads.safetensors")
    del about["version"], about["sha256"]
    other = {**tensors, "mean": tensors["mean"] * np.float32(1.01)}
    with ThreadPoolExecutor(2) as workers:
        list(workers.map(lambda which: write_bank(tmp_path, which, about), (tensors, other, tensors, other)))
    height = np.ptp(load_bank(tmp_path).mean[:, 1]) / np.ptp(tensors["mean"][:, 1])
    assert min(abs(height - 1), abs(height - 1.01)) < 1e-5

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (tmp_path / "heads.safetensors").read_bytes()
    monkeypatch.setattr(baking, "write_whole", full)
    with pytest.raises(OSError, match="the disk is full") as caught:
        write_bank(tmp_path, other, about)
    assert caught.value.errno == errno.ENOSPC and (tmp_path / "heads.safetensors").read_bytes() == before


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("name", RENDERED_AUS)
def test_an_action_unit_moves_its_own_region_most(name, strength, sitters):
    for sitter in sitters:
        rest, landmarks, _ = render_face(sitter, {}, Shot())
        shown, moved, _ = render_face(sitter, {name: strength}, Shot())
        change = np.abs(rest.astype(int) - shown).mean(-1)
        row, column = np.indices(change.shape)
        inside = np.zeros(change.shape, bool)
        for x, y in (*landmarks[list(WHERE[name])], *moved[list(WHERE[name])]):
            inside |= np.hypot(column - x, row - y) < 9
        assert change[inside].mean() > 2.0 * strength + 0.5
        assert change[inside].mean() > 2.5 * change[~inside].mean()


def test_each_side_moves_alone(sitters):
    half = np.indices((112, 112))[1] > 56
    for name in ("AU2", "AU6", "AU12", "AU43"):
        rest = render_face(sitters[0], {}, Shot())[0].astype(int)
        for side in (0, 1):
            sides = np.zeros((len(RENDERED_AUS), 2), np.float32)
            sides[RENDERED_AUS.index(name), side] = 1
            change = np.abs(render_face(sitters[0], sides, Shot())[0] - rest).mean(-1)
            # The person's left is at the image's right.
            own, other = change[half], change[~half]
            # Lips that one corner pulls move beyond the middle.
            least = 1.8 if name == "AU12" else 5
            assert (own if side == 0 else other).mean() > least * (other if side == 0 else own).mean()


def test_shapes_grow_with_intensity_and_lids_and_lips_stay_shut():
    def weights(**units):
        sides = np.zeros((len(RENDERED_AUS), 2), np.float32)
        for name, value in units.items():
            sides[RENDERED_AUS.index(name)] = value
        return shape_weights(sides)

    for name in RENDERED_AUS:
        assert np.linalg.norm(weights(**{name: 1.0})) > np.linalg.norm(weights(**{name: 0.4})) > 0
    assert weights(AU24=1.0, AU26=1.0).sum() < weights(AU24=1.0).sum() + weights(AU26=1.0).sum()


def test_two_people_never_share_a_face_and_a_face_comes_again(sitters):
    again = Sitter(subjects.subject(0, "studio", 0), 112)
    first, second, third = (render_face(sitter, {"AU12": 1.0}, Shot())[0] for sitter in (sitters[0], again, sitters[1]))
    assert (first == second).all() and (first != third).any()
    one, other = (draw_example(9, style="street", seed=seed)[0] for seed in (0, 1))
    assert (one != other).any() and (draw_example(9, style="street")[0] == one).all()
    with pytest.raises(ValueError, match="action_units: got"):
        render_face(sitters[0], {"AU28": 1.0}, Shot())


def test_truth_agrees_with_what_was_asked_for(sitters):
    shot = Shot(yaw=0.4, pitch=-0.1, roll=0.15)
    pixels, landmarks, truth = render_face(sitters[0], {"AU12": 0.6}, shot, gaze=(0.2, 0.0), with_truth=True)
    assert truth.parts.shape == pixels.shape[:2] and truth.depth.shape == truth.parts.shape
    assert truth.pose == pytest.approx(tuple(np.degrees((-0.1, 0.4, 0.15))))
    assert truth.sides[RENDERED_AUS.index("AU12")] == pytest.approx([3.0, 3.0])
    assert truth.gaze[0] > 0.4  # the head is turned to the image's right, and the eyes further
    seen = truth.parts > 0
    assert np.isfinite(truth.depth[seen]).all() and np.isnan(truth.depth[~seen]).all()
    assert np.linalg.norm(truth.normals[seen].astype(float), axis=-1) == pytest.approx(1, abs=0.02)
    eye = landmarks[[37, 38, 40, 41]].mean(0).astype(int)
    assert SEEN[truth.parts[eye[1], eye[0]]] == "eyes" or not truth.visibility[37]
    # Turned to the image's right, the image's right cheek hides.
    assert truth.visibility[[28, 30, 33, 62]].all() and not truth.visibility[16]
    roll = np.arctan2(*(landmarks[45] - landmarks[36])[::-1])
    assert roll == pytest.approx(0.15, abs=0.12)


@pytest.mark.parametrize("style", RENDERED_STYLES)
def test_frames_hold_a_face_with_its_landmarks(style):
    for index in (0, 37, 200):
        pixels, landmarks = draw_example(index, style=style, exact_landmarks=True)
        assert pixels.shape == (112, 112, 3) and pixels.std() > 8
        assert ((landmarks[17:] > -4) & (landmarks[17:] < 116)).all()
        assert landmarks[8, 1] > landmarks[57, 1] > landmarks[33, 1] > landmarks[27, 1]
        assert np.abs(draw_example(index, style=style)[1] - landmarks).max() < 9


def test_blinks_shut_both_eyes_for_a_frame_and_count_as_closed_eyes():
    eyes = subjects.shown_aus("street").index("AU43")
    shut = np.array([subjects.expression(1, "street", index)[0][eyes] for index in range(800)])
    around = np.stack([shut[:-2], shut[2:]])
    blinks = np.flatnonzero((shut[1:-1] >= 2) & (around < 1).all(0)) + 1
    assert 8 < len(blinks) < 60


def test_hands_and_things_hide_what_the_part_mask_says(sitters):
    rng = np.random.default_rng(3)
    shots = [draw_shot("webcam", rng)["place"] for _ in range(120)]
    held = [place["occluder"] for place in shots if "occluder" in place]
    assert 4 < len(held) < 40
    plain = render_face(sitters[0], {}, Shot())[0].astype(int)
    shown, _, truth = render_face(sitters[0], {}, Shot(occluder=held[0]), with_truth=True)
    hidden = truth.parts == SEEN.index("occluder")
    change = np.abs(shown - plain).mean(-1)
    assert hidden.any() and change[hidden].mean() > 4 * change[~hidden].mean()


def test_earrings_hang_at_the_ears(sitters):
    plain = replace(sitters[0].person, cut="bald", headwear="none", earrings="none")
    for kind in EARRINGS[1:]:
        bare, worn = (
            render_face(Sitter(person, 112), {}, Shot())[0] for person in (plain, replace(plain, earrings=kind))
        )
        row, column = np.nonzero(np.abs(bare.astype(int) - worn).sum(-1) > 20)
        assert (kind == "stud" or len(row)) and (np.abs(column - 56) > 22).all() and (row > 45).all()


def test_labels_follow_what_lips_do():
    names = subjects.shown_aus("studio")
    jaw, parted, pressed = (names.index(name) for name in ("AU26", "AU25", "AU24"))
    peaks = np.concatenate([subjects._keyframes(0, "studio", video)[2] for video in range(120)])
    dropped = peaks[:, jaw] >= 2.5
    assert dropped.any() and (peaks[dropped, parted] >= 2).all()
    assert not ((peaks[:, pressed] >= 2) & (peaks[:, parted] >= 2)).any()
    sides = subjects.sides(0, "studio", 3)
    assert sides.max(1) == pytest.approx(subjects.expression(0, "studio", 3)[0])


def test_rows_follow_the_schema_and_streams_are_equal(tmp_path):
    rows = MFASynthetic(40, "webcam", size=64, cache_dir=tmp_path, with_truth=True)
    check_leaks(rows)
    assert rows.features == {**mfa_features("mfa"), **truth_features(12)}
    first = rows[1]
    assert "CC0" in first["licence"] and first["corpus"] == "MFA-synthetic"
    assert np.shape(first["depth"]) == (TOKENS, TOKENS) and np.shape(first["normals"]) == (TOKENS, TOKENS, 3)
    assert first["part_mask"].size == (64, 64) and len(first["landmark_visible"]) == 68
    assert np.shape(first["au_sides"]) == (12, 2)
    streamed = MFASynthetic(40, "webcam", size=64, streaming=True)
    for one, other in zip(streamed.take(12), rows, strict=False):
        assert all((np.asarray(one[field]) == np.asarray(other[field])).all() for field in streamed.features)


@pytest.mark.parametrize("name", ["emotionet", "raf_au", LabelSet(RENDERED_AUS, EMOTIONS)])
def test_label_sets_that_only_renders_show(name):
    row = next(iter(MFASynthetic(2, "studio", size=48, label_set=name, streaming=True)))
    assert len(row["au_labels"]) == len((LABEL_SETS[name] if isinstance(name, str) else name).action_units)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "studio", "label_set": LabelSet(("AU28",))}, r"label_set: \['AU28'\]"),
        ({"style": "drawn", "with_truth": True}, "with_truth: got style 'drawn'"),
        ({"style": "cinema"}, "style: got 'cinema'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MFASynthetic(4, streaming=True, **arguments)
