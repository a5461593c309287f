import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mf2face.data.build.metadata import without_metadata
from processing_mf2.image_io import read_image


SECRET = b"secret-of-the-owner"


def exif(orientation=1):
    data = Image.Exif()
    data[0x010E], data[0x0112] = SECRET.decode(), orientation
    return data


def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(np.kron(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8)))


def saved(format="JPEG", image=None, **options):
    file = io.BytesIO()
    (image or picture()).save(file, format, **options)
    return file.getvalue()


def png(**options):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET.decode())
    info.add_text("XML:com.adobe.xmp", SECRET.decode(), zip=False)
    info.add_itxt("Author", SECRET.decode())
    return saved("PNG", exif=exif(), pnginfo=info, **options)


FILES = {
    "jpeg": saved(exif=exif(), comment=SECRET, xmp=SECRET),
    "progressive": saved(progressive=True, exif=exif()),
    "restarts": saved(restart_marker_blocks=2, comment=SECRET),
    "grey": saved(image=picture().convert("L"), exif=exif()),
    "cmyk": saved(image=picture().convert("CMYK"), exif=exif()),
    "profile": saved(icc_profile=SECRET * 9000),
    "several": saved("MPO", save_all=True, append_images=[picture()], exif=exif()),
    "png": png(),
    "palette": png(image=picture().convert("P")),
    "transparent": png(image=picture().convert("RGBA")),
    "animated": png(save_all=True, append_images=[picture().rotate(90)]),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_stay_and_everything_said_beside_them_goes(name):
    content = FILES[name] + b"\0" + SECRET
    stripped = without_metadata(content)
    assert SECRET in content and SECRET not in stripped
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
    content = FILES[name].rstrip(SECRET)
    for size in range(0, len(content) - 2, 37):
        assert without_metadata(content[:size]) is None, size
    assert without_metadata(saved("BMP")) is None and without_metadata(b"") is None
