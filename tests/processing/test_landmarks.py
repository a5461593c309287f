"""Landmark sources: checks of given ones, the template, and the real face-alignment package on files in its formats."""

import json
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import torch

from processing_mf2.geometry import canonical_landmarks
from processing_mf2.image_processing_mf2 import MF2ImageProcessor
from processing_mf2.landmarks import (
    TEMPLATES,
    FaceAlignmentDetector,
    _load_network,
    check_landmarks,
    check_orientation,
    template_landmarks,
)


FACE = template_landmarks(100, 80)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((5, 2)), r"landmarks: got \(5, 2\), expected \(68, 2\)"),
        (np.zeros((68, 3)), r"landmarks: got \(68, 3\), expected \(68, 2\)"),
        ("left eye", r"landmarks: got str, expected \(68, 2\) numbers"),
        (np.where(np.arange(68)[:, None] == 3, np.nan, FACE), r"landmarks: points \[3\] are not finite"),
        (FACE + np.array([130, 0]), r"pixels of their image, which has 80 x 100"),
        (FACE - np.array([0, 90]), r"pixels of their image, which has 80 x 100"),
        (np.full((68, 2), 40.0), r"spread over 0\.00 by 0\.00 pixels"),
        (np.stack([np.linspace(0, 80, 68)] * 2, axis=1), r"one line"),
        (FACE / 100, r"pixels, not fractions"),
    ],
)
def test_bad_landmarks_are_named(landmarks, message):
    with pytest.raises(ValueError, match=message):
        check_landmarks(landmarks, 100, 80, "landmarks")


def test_good_landmarks_pass_in_any_container():
    for landmarks in (FACE, FACE.tolist(), torch.tensor(FACE).bfloat16(), FACE + np.array([30, -20])):
        assert check_landmarks(landmarks, 100, 80, "landmarks").shape == (68, 2)


MIRRORED = FACE * (-1, 1) + (80, 0)


@pytest.mark.parametrize("degrees", [0, 60, -60, 90, 180])
def test_exchanged_sides_or_axes_are_named_however_the_face_is_turned(degrees):
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin], [sin, cos]])
    narrow = FACE * (0.1, 1)  # nearly a profile
    for points in (FACE, narrow, narrow * (-1, 1)):
        check_orientation(points @ turn.T, "landmarks")
    for points in (MIRRORED, FACE[:, ::-1], FACE * (1, -1)):
        with pytest.raises(ValueError, match=r"landmarks\[1\]: .*left and right, or x and y, .* exchanged"):
            check_orientation(points @ turn.T, "landmarks[1]")


def test_templates_are_where_their_makers_put_a_face():
    eyes_nose_mouth = [range(36, 42), range(42, 48), [30], [48], [54]]
    five = np.array([template_landmarks(112, 112, "insightface112")[list(part)].mean(0) for part in eyes_nose_mouth])
    theirs = [(38.3, 51.7), (73.5, 51.5), (56.0, 71.7), (41.5, 92.4), (70.7, 92.2)]
    assert np.abs(five - theirs).max() < 2  # of 112 pixels: a similarity fits a mean face, not each point
    ffhq = template_landmarks(1024, 1024, "ffhq")
    eyes = np.array([ffhq[36:42].mean(0), ffhq[42:48].mean(0)])
    mouth = ffhq[[48, 54]].mean(0)
    down = mouth - eyes.mean(0)
    assert max(4 * (eyes[1] - eyes[0])[0], 3.6 * down[1]) == pytest.approx(1024)
    assert np.allclose(eyes.mean(0) + 0.1 * down, 512)


@pytest.mark.parametrize("template", TEMPLATES)
def test_crops_of_each_template_are_brought_to_one_alignment(template):
    batch = MF2ImageProcessor(size={"height": 96, "width": 96})(
        np.zeros((112, 112, 3), np.uint8), landmark_source=template, return_landmark_source=True, return_faces=True
    )
    assert np.allclose(batch["landmarks"][0], canonical_landmarks(96, 96), atol=1e-3)
    assert batch["landmark_source"] == [template]
    assert batch["faces"][0]["box"] == {"xmin": 0, "ymin": 0, "xmax": 112, "ymax": 112}
    assert np.allclose(batch["faces"][0]["landmarks"], template_landmarks(112, 112, template))


def test_nothing_is_imported_or_fetched_unless_asked():
    code = (
        "import sys, numpy as np; from processing_mf2 import MF2ImageProcessor; "
        "MF2ImageProcessor()(np.zeros((64, 64, 3), np.uint8)); assert 'face_alignment' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "HF_HUB_OFFLINE": "1"}, timeout=120)


@pytest.fixture
def no_download(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    import face_alignment.utils

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(face_alignment.utils, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    _load_network.cache_clear()
    yield tmp_path
    _load_network.cache_clear()


def test_missing_weights_say_which_file_belongs_where(no_download):
    with pytest.raises(OSError, match="no network") as caught:
        FaceAlignmentDetector().detect([torch.zeros(3, 64, 64)])
    for part in ("2DFAN4-11f355bf06.pth.tar", "s3fd-619a316812.pth", str(no_download / "hub" / "checkpoints")):
        assert part in str(caught.value)


def _spot_detector() -> dict[str, torch.Tensor]:
    """S3FD weights that find a face, 40 pixels a side, wherever something is bright: brightness runs through the first
    channel of every layer, and the boxes of stride 16 answer to it."""
    from face_alignment.detection.sfd.net_s3fd import s3fd

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in s3fd().state_dict().items()}
    # Expanded zeros keep the file small.
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.startswith("conv") and name.endswith(".weight") and "norm" not in name:
            weight = torch.zeros(shape)
            weight[0, : 3 if name.startswith("conv1_1") else 1, shape[2] // 2, shape[3] // 2] = 1.0
            state[name] = weight
    state["conv5_3_norm.weight"] = torch.full(shapes["conv5_3_norm.weight"], 5.0)
    for name in shapes:
        if name.endswith("conf.bias"):
            state[name] = torch.tensor([9.0] * (len(torch.empty(shapes[name])) - 1) + [-9.0])
    fires = torch.zeros(shapes["conv5_3_norm_mbox_conf.weight"])
    fires[1, 0, 1, 1] = 4.0
    state["conv5_3_norm_mbox_conf.weight"] = fires
    shrink = float(np.log(40 / 64) / 0.2)
    state["conv5_3_norm_mbox_loc.bias"] = torch.tensor([0.0, 0.0, shrink, shrink])
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The package's cache with files in its own formats: a bright-spot detector and a random landmark network."""
    from face_alignment.models import FAN

    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(FAN(4).state_dict(), folder / "2DFAN4-11f355bf06.pth.tar")
    torch.save(_spot_detector(), folder / "s3fd-619a316812.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        _load_network.cache_clear()
        yield home
    _load_network.cache_clear()
    for file in folder.iterdir():
        file.unlink()


def _spots(*places: tuple[int, int], size: tuple[int, int] = (160, 192)) -> np.ndarray:
    image = np.full((*size, 3), 20, np.uint8)
    for x, y in places:
        image[y - 4 : y + 4, x - 4 : x + 4] = 250
    return image


SETTINGS = {"flip_input": False, "detection_side": 192}


def test_real_package_end_to_end(weights):
    detector = FaceAlignmentDetector(**SETTINGS)
    assert FaceAlignmentDetector(**SETTINGS).network is detector.network
    images = [torch.tensor(_spots(*places)).permute(2, 0, 1) for places in ([(40, 56)], [], [(40, 40), (152, 120)])]
    found = detector.detect(images)
    assert [len(faces) for faces in found] == [1, 0, 2]
    face = found[0][0]
    assert np.allclose((face.box[:2] + face.box[2:]) / 2, (40, 56), atol=9) and face.score > 0.8
    assert face.landmarks.shape == (68, 2) and face.confidence.shape == (68,)
    # The landmark network's crop is twice as large as the box, and a little higher.
    assert (np.abs(face.landmarks - (40, 56)) < 50).all() and np.ptp(face.landmarks) > 10
    centres = sorted(((face.box[:2] + face.box[2:]) / 2).tolist() for face in found[2])
    assert np.allclose(centres, [(40, 40), (152, 120)], atol=9)

    # A large image is searched in a small copy, and its faces come back in its own pixels.
    large = torch.tensor(_spots((40, 56)).repeat(2, 0).repeat(2, 1)).permute(2, 0, 1)
    box = detector.detect([large])[0][0].box
    assert np.allclose((box[:2] + box[2:]) / 2, (80, 112), atol=18)


def test_image_processor_finds_faces(weights):
    processor = MF2ImageProcessor(landmark_source="face_alignment", face_alignment_kwargs=SETTINGS, size=64)
    images = [_spots((40, 56)), _spots(), _spots((40, 40), (152, 120))]
    call = {"return_landmark_source": True}

    given = [None, None, None, template_landmarks(160, 192)]
    kept = processor([*images, _spots()], given, on_no_face="skip", **call)
    assert kept["image_index"].tolist() == [0, 2, 3]
    assert kept["landmark_source"] == ["face_alignment", "face_alignment", "given"]
    everyone = processor(images, on_no_face="template", on_many_faces="all", **call)
    assert everyone["image_index"].tolist() == [0, 1, 2, 2]
    assert everyone["landmark_source"] == ["face_alignment", "template", "face_alignment", "face_alignment"]
    assert torch.equal(kept["pixel_values"][0], everyone["pixel_values"][0])
    with pytest.raises(ValueError, match=r"images\[1\]: no face was found"):
        processor([_spots(), _spots()], [given[3], None])
    nobody = processor(_spots(), on_no_face="skip", **call)
    assert nobody["pixel_values"].shape == (0, 3, 64, 64) and nobody["landmarks"].shape == (0, 68, 2)
    assert json.loads(processor.to_json_string())["face_alignment_kwargs"] == SETTINGS
