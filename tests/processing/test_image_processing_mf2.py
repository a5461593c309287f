"""The image processor: aligned crops, landmarks that follow, equal in any batch, and equal after saving."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor

import processing_mf2  # noqa: F401 (registers the Auto classes)
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.geometry import canonical_landmarks, transform_points
from processing_mf2.image_processing_mf2 import MF2ImageProcessor, MF2ImageProcessorPil


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


def test_default_output_is_what_a_model_takes(processor, photograph):
    assert set(processor(photograph[0])) == {"pixel_values", "landmarks"}
    arrays = processor(photograph[0], return_tensors="np", return_landmark_source=True)
    assert isinstance(arrays["pixel_values"], np.ndarray) and isinstance(arrays["image_index"], np.ndarray)


def test_saved_and_loaded_is_equal(tmp_path, photograph):
    image, points = photograph
    processor = MF2ImageProcessor(
        **{"size": {"height": 96, "width": 80}, "image_mean": [0.4, 0.5, 0.6], "landmark_source": "given"},
        **{"face_alignment_kwargs": {"device": "cpu"}, "max_pixels": 10**6, "on_many_faces": "all"},
    )
    processor.save_pretrained(tmp_path)
    for loaded in (AutoImageProcessor.from_pretrained(tmp_path), MF2ImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is MF2ImageProcessor and loaded.to_dict() == processor.to_dict()
        assert torch.equal(loaded(image, points)["pixel_values"], processor(image, points)["pixel_values"])
    other = AutoImageProcessor.from_pretrained(tmp_path, landmark_source="template")
    assert other.landmark_source == "template" and other(image)["pixel_values"].shape == (1, 3, 96, 80)


@pytest.mark.parametrize(
    ("images", "call", "message"),
    [
        ([], {}, "images: got an empty list"),
        ([1, 2], {}, r"images\[0\]: got int"),
        ([np.zeros((20, 20), np.uint8), b""], {}, r"images\[1\]: the bytes holds zero bytes"),
        (np.zeros((20, 20), np.uint8), {"landmarks": np.zeros((5, 2))}, r"landmarks: got \(5, 2\), expected \(68, 2\)"),
        ([np.zeros((20, 20))] * 2, {"landmarks": [None, np.zeros((5, 2))]}, r"landmarks\[1\]: got \(5, 2\)"),
        ([np.zeros((20, 20))] * 2, {"landmarks": np.zeros((3, 68, 2))}, "landmarks: got 3 sets, expected 2"),
        (np.zeros((20, 20)), {"landmarks": "x"}, "landmarks: got str, expected 1"),
        (np.zeros((20, 20)), {"landmark_source": "given"}, "landmarks: got none, but landmark_source='given'"),
        (np.zeros((20, 20)), {"augment": MF2Augmentation(), "sample_index": [1, 2]}, "sample_index: got 2"),
        (np.zeros((20, 20)), {"do_center_crop": True}, "do_center_crop: got True, expected False"),
        (np.zeros((20, 20)), {"size": {"shortest_edge": 9}}, "size: got"),
        (np.zeros((20, 20)), {"landmark_source": "dlib"}, "landmark_source"),
        (np.zeros((20, 20)), {"do_aling": True}, "unknown setting 'do_aling'; did you mean 'do_align'"),
        (np.zeros((20, 20)), {"augment_sed": 1}, "unknown setting 'augment_sed'; did you mean 'augment_seed'"),
        (np.zeros((20, 20)), {"size": -3}, "size: got height -3 and width -3, expected"),
        (np.zeros((20, 20)), {"face_alignment_kwargs": {"devic": "cpu"}}, "'devic'; did you mean 'device'"),
        (np.zeros((20, 20)), {"landmarks": canonical_landmarks(20, 20) * (-1, 1) + (20, 0)}, "exchanged"),
    ],
)
def test_bad_calls_are_named(processor, images, call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        processor(images, **call)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"landmark_source": "dlib"}, ValueError, r"landmark_source: got 'dlib', expected one of \['template'"),
        ({"on_no_face": "ignore"}, ValueError, "on_no_face: got 'ignore'"),
        ({"do_aling": True}, TypeError, "unknown setting 'do_aling'; did you mean 'do_align'"),
        ({"size": 0}, ValueError, "size: got height 0 and width 0, expected"),
        ({"size": {"height": 2.5, "width": 5}}, ValueError, "size: got height 2.5 and width 5, expected"),
        ({"face_alignment_kwargs": {"devic": 1}}, TypeError, "face_alignment_kwargs: .*'devic'; did you mean 'device'"),
        ({"do_resize": False}, ValueError, "do_resize: got False, expected True"),
    ],
)
def test_bad_settings_are_named(setting, error, message):
    with pytest.raises(error, match=message):
        MF2ImageProcessor(**setting)


def test_a_wide_photograph_without_landmarks_is_warned_about(processor, caplog):
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    logging.getLoggerClass().warning_once.cache_clear()  # transformers says it once a process
    try:
        processor(np.zeros((100, 100), np.uint8))
        assert "ready-aligned" not in caplog.text
        processor(np.zeros((100, 180), np.uint8))
        assert "landmark_source=" in caplog.text
    finally:
        logger.propagate = propagate


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


def test_auto_classes_offer_both_backends(tmp_path, photograph):
    image, points = photograph
    for cls in (MF2ImageProcessor, MF2ImageProcessorPil):
        cls(size=96).save_pretrained(tmp_path)
        for backend, expected in (("torchvision", MF2ImageProcessor), ("pil", MF2ImageProcessorPil)):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
            assert type(loaded) is expected and loaded.backend == backend
            assert loaded(image, points)["pixel_values"].shape == (1, 3, 96, 96)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is MF2ImageProcessor


def test_a_long_crop_of_many_samples_is_made_in_bands(monkeypatch):
    image = torch.randint(0, 256, (3, 900, 700), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for cls in (MF2ImageProcessor, MF2ImageProcessorPil):
        processor = cls(size={"height": 300, "width": 250})
        whole = processor(image)["pixel_values"]
        with monkeypatch.context() as patch:
            patch.setattr("processing_mf2.geometry._MOST_SAMPLES", 50_000)
            assert (processor(image)["pixel_values"] - whole).abs().max() < 5e-3
