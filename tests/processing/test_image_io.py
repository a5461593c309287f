"""Images of every kind are read alike, what is none is named, and a download is bounded."""

import base64
import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from processing_mf2 import image_io
from processing_mf2.image_io import BACKGROUND, FORMATS, _is_private, download, flatten_images, image_size, read_image


ROOT = Path(__file__).parents[2]


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, so that no colour conversion moves it far."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([x * 7, y * 9, 255 - x * 4 - y * 4], axis=-1).astype(np.uint8)


def _encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", "RGB RGBA RGBX CMYK YCbCr HSV LAB P L LA PA 1 I F".split())
def test_every_mode_of_pil(mode, picture):
    image = Image.fromarray(picture)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    else:
        image = image.quantize(256) if mode in ("P", "PA") else image
        image = (image.convert("L") if mode in ("I", "F", "LA") else image).convert(mode)
    read = read_image(image)
    assert read.shape == (3, 24, 32)
    grey = mode in ("L", "LA", "1", "I", "F")
    expected = np.array(Image.fromarray(picture).convert("L").convert("RGB")) if grey else picture
    tolerance = {"P": 40, "PA": 40, "1": 256, "HSV": 9, "LAB": 30, "YCbCr": 4}.get(mode, 1)
    assert np.abs(read.transpose(1, 2, 0).astype(float) - expected).max() <= tolerance


def test_transparency_shows_mid_grey(picture):
    alpha = np.zeros((24, 32, 1), np.uint8)
    alpha[:, 16:] = 255
    rgba = np.concatenate([picture, alpha], axis=-1)
    see_through = Image.fromarray(picture).quantize(4)
    see_through.info["transparency"] = see_through.getpixel((0, 0))
    for image in (Image.fromarray(rgba), rgba, torch.tensor(rgba).permute(2, 0, 1), rgba / 255):
        read = read_image(image)
        grey = 128 if read.dtype == np.uint8 else BACKGROUND
        assert (read[:, :, :16] == grey).all()
        assert np.allclose(read[:, :, 16:].transpose(1, 2, 0), picture[:, 16:], atol=1e-3)
    assert (read_image(see_through)[:, 0, 0] == 128).all()


def test_arrays_of_every_kind(picture):
    expected = picture.transpose(2, 0, 1)
    chw = np.ascontiguousarray(picture.transpose(2, 0, 1))
    frozen = picture.copy()
    frozen.flags.writeable = False
    same = [
        *(picture, frozen, picture[:, ::-1][:, ::-1], chw, torch.tensor(chw), torch.tensor(picture)),
        *(picture.astype(np.float32), picture / 255, picture.astype(np.int64), torch.tensor(chw) / 255),
        *(picture.astype(np.uint16) * 257, (picture.astype(">u2") * 257).astype(">u2"), picture.astype(np.int32) * 257),
    ]
    for image in same:
        assert np.allclose(read_image(image), expected, atol=1e-4)
    assert read_image(picture).dtype == np.uint8
    for grey in (picture[..., 0], picture[..., :1], torch.tensor(chw[:1]), picture[..., 0] / 255):
        assert np.allclose(read_image(grey), expected[:1], atol=1e-4) and len(read_image(grey)) == 3
    assert set(np.unique(read_image(picture[..., 0] > 100))) == {0, 255}


def test_files_bytes_paths_and_undecoded_rows_of_datasets(picture, tmp_path):
    file = tmp_path / "face.png"
    Image.fromarray(picture).save(file)
    content = file.read_bytes()
    rows = [{"bytes": content, "path": None}, {"bytes": None, "path": str(file)}, {"path": file}]
    for source in (file, str(file), content, Image.open(file), *rows):
        assert np.array_equal(read_image(source).transpose(1, 2, 0), picture)
    assert len(flatten_images(rows)) == 3
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    assert deep.mode == "I;16" and np.allclose(read_image(_encoded(deep))[0], picture[..., 0], atol=1e-4)


def test_a_phone_s_heic_names_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    with pytest.raises(ValueError, match=r"photo\.heic.*pip install pillow-heif"):
        read_image(tmp_path / "photo.heic")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_orientation_is_what_pil_makes_of_it(orientation, dtype):
    pixels = np.random.default_rng(0).integers(0, 200, (20, 33) if dtype == np.uint16 else (20, 33, 3)).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _encoded(Image.fromarray(pixels), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    read = read_image(content)
    read = read[0] * 257 if dtype == np.uint16 else read.transpose(1, 2, 0)
    assert np.allclose(read, expected, atol=1e-3)


def test_strips_join_without_a_seam(monkeypatch):
    monkeypatch.setattr("processing_mf2.image_io._STRIP", 100)
    rgba = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + BACKGROUND * (1 - alpha)
    for image in (Image.fromarray(rgba), rgba, rgba / 255):
        assert np.abs(read_image(image).transpose(1, 2, 0) - expected).max() <= 0.5001


def test_only_named_formats_are_opened(tmp_path):
    face = Image.new("RGB", (40, 40))
    for kind in ("EPS", "ICO", "TGA", "PCX", "PDF"):
        file = tmp_path / "face.jpg"
        face.save(file, kind)
        with pytest.raises(ValueError, match=r"format that is read here .*JPEG, PNG"):
            read_image(file)
        with pytest.raises(ValueError, match="format that is read here"):
            image_size(file)
    for kind in FORMATS:
        assert read_image(_encoded(face, kind)).shape == (3, 40, 40)


def test_base64_text_is_an_image(picture):
    content = _encoded(Image.fromarray(picture))
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    for image in (text, f"data:image/png;base64,{text}", lines):
        assert np.array_equal(read_image(image), read_image(content))
    with pytest.raises(ValueError, match="neither a file nor base64"):
        read_image("x" * 101)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_image(f"{'long' * 100}.png")


PEAK = """
import sys
from processing_mf2 import MF2ImageProcessor
processor = MF2ImageProcessor(size=112)
def peak():
    return max(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(("VmHWM", "VmRSS")))
open("/proc/self/clear_refs", "w").write("5")
idle = peak()
try:
    processor(sys.argv[1])
    said = "read"
except ValueError as error:
    said = str(error)
print(round(peak() - idle), said)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak is told by Linux alone")
@pytest.mark.parametrize(
    ("kind", "mode", "side", "options", "said"),
    [
        ("WEBP", "RGBA", (8000, 8000), {"lossless": True}, "expected at most"),
        ("WEBP", "RGBA", (5000, 5100), {"lossless": True}, "read"),
        ("JPEG", "CMYK", (6500, 6500), {"progressive": True}, "read"),
        ("PNG", "RGB", (75_000, 512), {"compress_level": 1}, "read"),
    ],
)
@pytest.mark.slow
def test_no_image_takes_more_than_600_megabytes(kind, mode, side, options, said, tmp_path):
    make = f"Image.new({mode!r}, {side!r}).save(sys.argv[1], {kind!r}, **{options!r})"
    make = f"import sys; from PIL import Image; {make}"
    for script in (make, PEAK):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "face")], capture_output=True, text=True, check=True, cwd=ROOT
        )
    peak, _, told = run.stdout.partition(" ")
    assert int(peak) < 600 and said in told


def test_formats_that_take_more_memory_may_have_fewer_pixels(picture):
    image = Image.fromarray(picture)
    for kind, most in (("PNG", 768), ("WEBP", 1536), ("TIFF", 1229)):
        assert read_image(_encoded(image, kind), max_pixels=most).shape == (3, 24, 32)
        with pytest.raises(ValueError, match="got 32 x 24 pixels, expected at most"):
            read_image(_encoded(image, kind), max_pixels=most - 1)
    with pytest.raises(ValueError, match="got 32 x 24 pixels, expected at most"):
        read_image(picture / 255, max_pixels=768)


def test_animation_gives_its_first_frame(picture):
    frames = [Image.fromarray(np.full((24, 32), value, np.uint8)) for value in (10, 200)]
    read = read_image(_encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (read == 10).all()


def _huge_png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"", ValueError, "zero bytes"),
        (b"no image at all", ValueError, "not an image in a format"),
        (_huge_png(60_000), ValueError, "PIL itself refuses .*MAX_IMAGE_PIXELS"),
        (_huge_png(9_000), ValueError, "got 9000 x 9000 pixels, expected at most 51,000,000.*raise max_pixels"),
        (np.zeros((20, 5000, 3), np.uint8), ValueError, "one side at most 200 times the other"),
        ({"bytes": None, "path": None}, ValueError, "got neither bytes nor a path"),
        ({"data": b""}, TypeError, "got dict"),
        (_huge_png(100), ValueError, "truncated or damaged"),
        (Image.new("RGB", (1, 1)), ValueError, "got 1 x 1 pixels, expected at least 16 a side"),
        (np.zeros((20, 20, 20, 20), np.uint8), ValueError, r"array of shape \(20, 20, 20, 20\)"),
        (np.full((20, 20, 3), np.nan), ValueError, "values from nan"),
        (np.linspace(-2, 2, 1200).reshape(20, 20, 3), ValueError, "already normalised"),
        (np.full((20, 20), "x", object), ValueError, "array of object"),
        (torch.zeros(20, 20, dtype=torch.complex64), ValueError, "complex64"),
        (torch.zeros(3, 20, 20).to_sparse(), TypeError, "got a sparse_coo tensor on cpu"),
        (torch.zeros(3, 20, 20, device="meta"), TypeError, "got a strided tensor on meta"),
        ("nowhere.png", FileNotFoundError, "no file 'nowhere.png'"),
        ("https://example.invalid/face.png", ValueError, "pass allow_url=True"),
        (12, TypeError, "got int, expected a PIL image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_named(image, error, message):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(error, match=message) as caught:
        read_image(image, name="images[3]")
    assert str(caught.value).startswith("images[3]: ")
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_file_cut_off_anywhere_is_a_clear_error(kind, tmp_path):
    rng = np.random.default_rng(0)
    content = _encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)), kind)
    for share in (0.02, 0.3, 0.8):
        file = tmp_path / f"cut_{share}.{kind.lower()}"
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"not an image|damaged"):
            read_image(file, name="image")


def test_the_size_is_read_without_decoding(picture, tmp_path):
    png = _huge_png(5_000)
    (tmp_path / "face.png").write_bytes(png)
    for image in (png, tmp_path / "face.png", {"bytes": png, "path": None}):
        assert image_size(image) == (5_000, 5_000)
    for image in (picture, torch.tensor(picture).permute(2, 0, 1), Image.fromarray(picture)):
        assert image_size(image) == (24, 32)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("how", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30, "comment": b"words"}])
@pytest.mark.parametrize("orientation", [None, 6])
def test_a_jpeg_is_read_as_pil_reads_it(mode, how, orientation):
    pixels, exif = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image = Image.fromarray(pixels).resize((87, 61), Image.Resampling.BICUBIC).convert(mode)
    image.save(file := io.BytesIO(), "jpeg", exif=exif, **how)
    expected = np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB")).astype(int)
    read = read_image(file.getvalue()).transpose(1, 2, 0)
    assert read.shape == expected.shape and np.abs(read - expected).max() <= 2  # 0 with the same build of libjpeg


CONTENT = _encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)))


class _Pages(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def answer(self, code: int, content: bytes = b"", **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        where = {
            "/here": f"http://127.0.0.1:{port}/image",
            "/named": f"http://localhost:{port}/image",
            "/file": "file:///etc/hostname",
            "/ftp": "ftp://127.0.0.1/image",
        }.get(self.path)
        if where:
            self.answer(302, Location=where)
        elif self.path == "/no_http":
            self.wfile.write(b"\x00\x01 nothing of HTTP\n\n")
        elif self.path == "/slow":
            self.answer(200)
            for _ in range(100):
                self.wfile.write(b".")
                time.sleep(0.1)
        else:
            pages = {"/image": (200, CONTENT), "/broken": (200, b"few")}
            code, content = pages.get(self.path, (404, b""))
            self.answer(code, content, Content_Length=1000 if content == b"few" else len(content))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_of_the_own_network_may_be_given_and_may_redirect_within_it(address: str) -> None:
    for page in ("/image", "/here", "/named"):
        read = read_image(address + page, allow_url=True)
        assert np.array_equal(read, read_image(CONTENT))


@pytest.mark.parametrize("page", ["/file", "/ftp", "/broken", "/no_http", "/missing"])
def test_what_goes_wrong_is_one_kind_of_error(address: str, page: str) -> None:
    with pytest.raises(ValueError, match=r"images\[2\]: 'http://127.* could not be fetched"):
        download(address + page, "images[2]")


def test_a_public_address_may_not_redirect_into_the_own_network(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_is_private", lambda host: host == "localhost")  # the server is public now
    assert download(f"{address}/here", "images") == CONTENT
    with pytest.raises(ValueError, match="redirects to the private address"):
        download(f"{address}/named", "images")


def test_the_time_is_limited_in_all(address: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"longer than 0\.5 s"):
        download(f"{address}/slow", "images", timeout=0.5)
    assert time.monotonic() - start < 3
    with pytest.raises(ValueError, match="timeout: got -1"):
        download(f"{address}/image", "images", timeout=-1)


def test_the_size_is_limited(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "MOST_DOWNLOADED", 3)
    with pytest.raises(ValueError, match="larger than"):
        download(f"{address}/image", "images")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0"],
)
def test_private_hosts_are_known(host: str) -> None:
    assert _is_private(host) and not _is_private("8.8.8.8")
