"""Aligned crops whose landmarks follow, equal in any batch, backend and after saving; every bad setting is named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor

import processing_mf2  # noqa: F401 (registers the Auto classes)
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.geometry import canonical_landmarks, transform_points
from processing_mf2.image_processing_mf2 import MF2ImageProcessor, MF2ImageProcessorPil, check_settings


@pytest.fixture
def processor() -> MF2ImageProcessor:
    return MF2ImageProcessor(size={"height": 112, "width": 112})


@pytest.fixture
def photograph() -> tuple[torch.Tensor, np.ndarray]:
    """A face turned by 20 degrees, somewhere in an image: smooth colours and its landmarks."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    image = F.interpolate(coarse, (300, 400), mode="bicubic").clamp(0, 255)[0]
    cos, sin = 160 * np.cos(np.deg2rad(20)), 160 * np.sin(np.deg2rad(20))
    placed = np.array([[cos, -sin, 150], [sin, cos, 40], [0, 0, 1]])
    return image.to(torch.uint8), transform_points(placed, canonical_landmarks(1, 1))


def _dotted(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    near = ((x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2).min(0)
    return np.repeat((255 * np.exp(-near / 18))[..., None], 3, axis=-1).astype(np.uint8)


TURNED = MF2Augmentation(brightness=0, contrast=0, saturation=0, cutout=0, rotate=25)
AUGMENTED = {"augment": TURNED, "augment_seed": 7}


@pytest.mark.parametrize("call", [{}, {"do_align": False}, AUGMENTED, {**AUGMENTED, "sample_index": [3]}])
def test_landmarks_lie_on_their_dots(processor, photograph, call):
    _, points = photograph
    chosen = [8, 30, 36, 45, 48, 54]
    image = _dotted(points[chosen], (300, 400))
    out = processor(image, points, **call)
    crop = (out["pixel_values"][0, 0] + 1) * 127.5
    found = out["landmarks"][0].numpy()
    if "augment" in call and (found[36] - found[45])[0] > 0:
        pytest.fail("the left eye is on the right")
    for point in out["landmarks"][0][chosen].numpy():
        x, y = np.floor(point).astype(int)
        if not (3 <= x < 109 and 3 <= y < 109):
            continue
        around = crop[y - 3 : y + 4, x - 3 : x + 4]
        brightest = np.unravel_index(int(around.argmax()), (7, 7))
        assert around.max() > 150
        assert np.abs(np.array([x - 3 + brightest[1], y - 3 + brightest[0]]) + 0.5 - point).max() <= 1.3


def test_alignment_brings_the_face_to_the_canonical_one(processor, photograph):
    image, points = photograph
    out = processor(image, points)
    assert out["pixel_values"].shape == (1, 3, 112, 112) and out["landmarks"].dtype == torch.float32
    assert np.allclose(out["landmarks"][0], canonical_landmarks(112, 112), atol=1e-3)
    plain = processor(image, points, do_align=False)
    assert np.allclose(plain["landmarks"][0], points * (112 / 400, 112 / 300), atol=1e-3)


def test_an_aligned_crop_is_only_resized(processor, photograph):
    image = photograph[0][:, :, :300]
    ways = [
        processor(image),
        processor(image, canonical_landmarks(300, 300)),
        processor(image, do_align=False),
        processor(image, canonical_landmarks(300, 300), do_align=False),
    ]
    for way in ways[1:]:
        assert torch.allclose(way["pixel_values"], ways[0]["pixel_values"], atol=2e-4)
        assert torch.allclose(way["landmarks"], ways[0]["landmarks"], atol=1e-3)


def test_a_mirrored_face_gives_the_mirrored_crop(processor, photograph):
    image, points = photograph
    flip = {"augment": MF2Augmentation(**{**dict.fromkeys(MF2Augmentation.__dataclass_fields__, 0.0), "flip": 1.0})}
    plain, flipped = processor(image, points), processor(image, points, **flip)
    assert torch.allclose(flipped["pixel_values"], plain["pixel_values"].flip(-1), atol=1e-3)
    crop = (flipped["pixel_values"][0] + 1) * 127.5
    twice = processor(crop, flipped["landmarks"], **flip)
    assert torch.allclose(twice["pixel_values"], plain["pixel_values"], atol=2e-3)
    assert torch.allclose(twice["landmarks"], plain["landmarks"], atol=1e-3)


def test_a_batch_is_one_by_one(processor, photograph):
    image, points = photograph
    images = [image, Image.new("L", (50, 60), 90), image[:, :200, :250].numpy()]
    landmarks = [points, None, points]
    call = {"augment": MF2Augmentation(), "augment_seed": 3, "return_landmark_source": True}
    batch = processor(images, landmarks, sample_index=[10, 11, 12], **call)
    assert batch["landmark_source"] == ["given", "template", "given"] and batch["image_index"].tolist() == [0, 1, 2]
    for index in range(3):
        single = processor(images[index], landmarks[index], sample_index=[10 + index], **call)
        assert torch.equal(single["pixel_values"][0], batch["pixel_values"][index])
        assert torch.equal(single["landmarks"][0], batch["landmarks"][index])
    assert not torch.equal(batch["pixel_values"][0], processor(image, points, **call)["pixel_values"][0])


def test_normalisation_is_the_usual_one(photograph):
    image, points = photograph
    mean, std = [0.48, 0.45, 0.40], [0.26, 0.27, 0.28]
    processor = MF2ImageProcessor(image_mean=mean, image_std=std, size=64)
    bare = processor(image, points, do_normalize=False)["pixel_values"]
    assert 0 <= bare.min() and 0.5 < bare.max() <= 1
    expected = (bare - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(processor(image, points)["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize("cls", [MF2ImageProcessor, MF2ImageProcessorPil])
def test_saved_and_loaded_is_equal_by_either_backend(tmp_path, photograph, cls):
    image, points = photograph
    processor = cls(
        **{"size": {"height": 96, "width": 80}, "image_mean": [0.4, 0.5, 0.6], "landmark_source": "given"},
        **{"face_alignment_kwargs": {"device": "cpu"}, "max_pixels": 10**6, "on_many_faces": "all"},
    )
    processor.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(loaded(image, points)["pixel_values"], processor(image, points)["pixel_values"])
    for backend, expected in (("torchvision", MF2ImageProcessor), ("pil", MF2ImageProcessorPil)):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is expected and loaded.backend == backend
    other = AutoImageProcessor.from_pretrained(tmp_path, landmark_source="template")
    assert type(other) is MF2ImageProcessor and other(image)["pixel_values"].shape == (1, 3, 96, 80)


@pytest.mark.parametrize(
    ("images", "call", "message"),
    [
        ([], {}, "images: got an empty list"),
        ([1, 2], {}, r"images\[0\]: got int"),
        ([np.zeros((20, 20), np.uint8), b""], {}, r"images\[1\]: the bytes holds zero bytes"),
        (np.zeros((20, 20), np.uint8), {"landmarks": np.zeros((5, 2))}, r"landmarks: got \(5, 2\), expected \(68, 2\)"),
        ([np.zeros((20, 20))] * 2, {"landmarks": [None, np.zeros((5, 2))]}, r"landmarks\[1\]: got \(5, 2\)"),
        ([np.zeros((20, 20))] * 2, {"landmarks": np.zeros((3, 68, 2))}, "landmarks: got 3 sets, expected 2"),
        (np.zeros((20, 20)), {"landmark_source": "given"}, "landmarks: got none, but landmark_source='given'"),
        (np.zeros((20, 20)), {"augment": MF2Augmentation(), "sample_index": [1, 2]}, "sample_index: got 2"),
        (np.zeros((20, 20)), {"do_center_crop": True}, "do_center_crop: got True, expected False"),
        (np.zeros((20, 20)), {"do_aling": True}, "unknown setting 'do_aling'; did you mean 'do_align'"),
        (np.zeros((20, 20)), {"face_alignment_kwargs": {"devic": "cpu"}}, "'devic'; did you mean 'device'"),
        (np.zeros((20, 20)), {"landmarks": canonical_landmarks(20, 20) * (-1, 1) + (20, 0)}, "exchanged"),
    ],
)
def test_bad_calls_are_named(processor, images, call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        processor(images, **call)


def test_a_wide_photograph_without_landmarks_is_warned_about(processor, transformers_log):
    processor(np.zeros((100, 100), np.uint8))
    assert "ready-aligned" not in transformers_log.text
    processor(np.zeros((100, 180), np.uint8))
    assert "landmark_source=" in transformers_log.text


@pytest.mark.parametrize("call", [{}, {"do_align": False}, AUGMENTED, {"do_normalize": False}])
@pytest.mark.parametrize("size", [{"height": 112, "width": 112}, {"height": 40, "width": 90}])
def test_both_backends_agree(photograph, call, size):
    small, points = photograph
    large = F.interpolate(small[None].float(), (1500, 2000), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
    cases = [(small, points), (small, None), (large, points * 5), (large, None), (small / 255, points)]
    for image, given in cases:
        torchvision, pil = (cls(size=size)(image, given, **call) for cls in (MF2ImageProcessor, MF2ImageProcessorPil))
        assert torchvision["landmarks"].equal(pil["landmarks"])
        differ = (torchvision["pixel_values"] - pil["pixel_values"]).abs()
        outside = torchvision["pixel_values"].abs() < 1e-4  # an image's edge falls between samples
        assert differ.mean() < 2e-3 and (differ[~outside] > 0.01).float().mean() < 0.02
        if given is None:
            assert differ.max() < 0.01


def test_a_long_crop_of_many_samples_is_made_in_bands(monkeypatch):
    image = torch.randint(0, 256, (3, 900, 700), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for cls in (MF2ImageProcessor, MF2ImageProcessorPil):
        processor = cls(size={"height": 300, "width": 250})
        whole = processor(image)["pixel_values"]
        with monkeypatch.context() as patch:
            patch.setattr("processing_mf2.geometry._MOST_SAMPLES", 50_000)
            assert (processor(image)["pixel_values"] - whole).abs().max() < 5e-3


IMAGE = np.zeros((40, 40, 3), np.uint8)
BAD = [
    *(
        ("image_std", value)
        for value in ([0, 0, 0], 0, [0.5, 0.5, -1], [0.5, math.nan, 1], [0.5, 0.5], "0.5", [[1]], {}, 10**30, 1e-30)
    ),
    *(("image_mean", value) for value in ([math.nan] * 3, [0, 0, 1e30], math.inf, [0.5] * 4, "grey", [None] * 3, True)),
    *(("rescale_factor", value) for value in (0, math.nan, math.inf, "1/255", [1])),
    *(("size", value) for value in (0, -3, 2.5, "224", {"height": 5}, {"width": True, "height": 5}, [1, 2, 3], 10**6)),
    *(("max_pixels", value) for value in (0, -1, 2.5, "many", True)),
    *(("do_align", value) for value in (1, "no", [])),
    *(("do_normalize", value) for value in (0, "no")),
    *(("landmark_source", value) for value in ("dlib", 1, [], {})),
    *(("face_alignment_kwargs", value) for value in ("cpu", 3, ["device"])),
    *(("resample", value) for value in (7, "bilinear", [])),
    ("do_resize", False),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_named_where_a_processor_is_made_called_or_loaded(name, value, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        MF2ImageProcessor(**{name: value})
    with pytest.raises((ValueError, TypeError), match=name):
        MF2ImageProcessor(size=32)(IMAGE, **{name: value})
    if name == "max_pixels":  # of a file it is left out
        return
    MF2ImageProcessor(size=32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    for load in (AutoImageProcessor.from_pretrained, MF2ImageProcessor.from_pretrained):
        with pytest.raises((ValueError, TypeError), match=f"{tmp_path.name}.*{name}"):
            load(tmp_path)


def test_one_number_stands_for_all_colours() -> None:
    usual = {name: getattr(MF2ImageProcessor(), name, None) for name in MF2ImageProcessor.valid_kwargs.__annotations__}
    assert check_settings({**usual, "image_mean": 0.5, "size": (40, 30)})["size"].width == 30
    one, three = (MF2ImageProcessor(size=32, image_mean=mean)(IMAGE)["pixel_values"] for mean in (0.4, [0.4] * 3))
    assert one.equal(three)


@pytest.mark.parametrize("cls", [MF2ImageProcessor, MF2ImageProcessorPil])
def test_a_checkpoint_neither_opens_the_network_nor_raises_a_limit(cls, tmp_path: Path) -> None:
    cls(size=32, allow_url=True, max_pixels=10**9, timeout=1e9).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert not {"allow_url", "max_pixels", "timeout"} & set(saved)
    file.write_text(json.dumps({**saved, "allow_url": True, "max_pixels": 10**9, "timeout": 1e9}))
    for load in (cls.from_pretrained, AutoImageProcessor.from_pretrained, lambda folder: cls.from_json_file(file)):
        loaded = load(tmp_path)
        assert (loaded.allow_url, loaded.max_pixels, loaded.timeout) == (False, cls.max_pixels, None)
    asked = AutoImageProcessor.from_pretrained(tmp_path, allow_url=True, max_pixels=5)
    assert asked.allow_url is True and asked.max_pixels == 5


def test_what_else_a_file_holds_is_kept_but_not_a_misspelt_setting(tmp_path: Path) -> None:
    processor = MF2ImageProcessor(size=32)
    processor.is_override = True
    processor.save_pretrained(tmp_path)
    assert MF2ImageProcessor.from_pretrained(tmp_path).is_override is True
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_aling": False}))
    with pytest.raises(TypeError, match="'do_aling'; did you mean 'do_align'"):
        MF2ImageProcessor.from_pretrained(pretrained_model_name_or_path=tmp_path)
