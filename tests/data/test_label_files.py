"""Label files: read at numpy's speed, and every mistake named with its file, line and field."""

import numpy as np
import pytest

from mf2face.data.corpora.label_files import (
    CorpusError,
    Duplicates,
    check_folder,
    check_header,
    csv_rows,
    integer_table,
    parse_integers,
    read_text,
    safe_path,
)


ADVICE = "Fetch it again"


def test_a_table_is_what_python_reads_line_by_line():
    rng = np.random.default_rng(0)
    table = rng.integers(-1, 10, (500, 12))
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    assert np.array_equal(parse_integers(text + "\n\n", 12), table)
    assert np.array_equal(parse_integers("1, -2\n3 ,4", 2), [[1, -2], [3, 4]])
    assert parse_integers("", 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1,0\n1\n", r"labels.txt, line 3: got 1 values \('1'\), expected 2 values: AU1, AU2. Fetch it again"),
        ("1,0\n1,0,0", r"line 3: got 3 values"),
        ("1,0\n1,", r"line 3, AU2: got '', expected a whole number"),
        ("1,0\n\n1,0", r"line 3: got 1 values"),
        ("1,0\n1,0.5", r"line 3, AU2: got '0\.5', expected a whole number"),
        ("1,0\nx,1", r"line 3, AU1: got 'x'"),
        ("1,0\n-,1", r"line 3, AU1: got '-'"),
        ("1,0\n1,0\n1,2", r"line 4, AU2: got 2, expected one of -1, 0, 1"),
        ("1 0,1", r"line 2, AU1: got '1 0'"),
        ("99999999999,1", r"line 2, AU1: got '99999999999'"),
    ],
)
def test_the_first_wrong_line_is_named(tmp_path, text, told):
    with pytest.raises(CorpusError, match=told):
        integer_table(tmp_path / "labels.txt", text, ("AU1", "AU2"), (-1, 0, 1), ADVICE, first_line=2)


def test_texts_are_utf8(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_bytes("\ufeffimage,emotion\r\nä.jpg,Fear\r\n".encode())
    assert read_text(file) == "image,emotion\nä.jpg,Fear\n"
    file.write_bytes(b"image\na.jpg\n\xe4.jpg\n")
    with pytest.raises(CorpusError, match=r"labels.csv, line 3: got the byte 0xe4, expected UTF-8 text. Save the file"):
        read_text(file)
    with pytest.raises(CorpusError, match=r"No such file.*expected a readable file"):
        read_text(tmp_path / "none.csv")
    with pytest.raises(CorpusError, match="line 2: got unexpected end of data"):
        list(csv_rows(file, 'a,b\n"c,d\n'))


def test_headers_name_the_column_that_differs(tmp_path):
    check_header(tmp_path, ["AU1 ", "AU2"], ["AU1", "AU2"], ADVICE)
    with pytest.raises(CorpusError, match=r"line 1, column 2: got 'AU20', expected 'AU2'. Fetch it again. The whole"):
        check_header(tmp_path, ["AU1", "AU20"], ["AU1", "AU2"], ADVICE)
    with pytest.raises(CorpusError, match="got 1 columns, expected 2: AU1, AU2"):
        check_header(tmp_path, ["AU1"], ["AU1", "AU2"], ADVICE)


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "", "a\0.jpg", "https://a.org/b.jpg"],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(CorpusError, match=r"line 7, image: got .*expected a path below the folder"):
        safe_path(name, tmp_path / "labels.csv", 7)
    assert safe_path(" a/b..c.jpg ", tmp_path, 1) == "a/b..c.jpg" and safe_path("a\\b.jpg", tmp_path, 1) == "a/b.jpg"


def test_folders_and_duplicates(tmp_path):
    with pytest.raises(CorpusError, match=r"nothing there, expected a folder: the images. Look elsewhere"):
        check_folder(tmp_path / "none", "the images", "Look elsewhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CorpusError, match="expected a folder"):
        check_folder(tmp_path / "loop", "the images", ADVICE)
    seen = Duplicates(tmp_path / "labels.csv")
    seen.add("a.jpg", 2)
    with pytest.raises(CorpusError, match=r"line 5, image: got 'a.jpg' again, expected each once.*line 2"):
        seen.add("a.jpg", 5)
