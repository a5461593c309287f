import errno
import hashlib
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from mf2face import files
from mf2face.data import cache as dataset_cache
from mf2face.data.synthetic import faces as synthetic_faces
from mf2face.data.synthetic.faces import MFASynthetic, draw_example


def kept(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def test_a_second_call_reads_the_cache(tmp_path, monkeypatch):
    first = MFASynthetic(4, "drawn", cache_dir=tmp_path)
    monkeypatch.setattr(synthetic_faces, "_examples", None)
    assert MFASynthetic(4, "drawn", cache_dir=tmp_path)[:] == first[:]
    with pytest.raises(ValueError, match="generator"):
        MFASynthetic(4, "drawn", cache_dir=tmp_path, seed=1)
    assert len(kept(tmp_path)) == 1  # nothing half-written is left


@pytest.mark.parametrize("damage", ["cut", "swap a byte", "no checksums", "no data", "[[1]]"])
def test_a_damaged_cache_is_drawn_again(tmp_path, caplog, damage):
    expected = MFASynthetic(4, "drawn", cache_dir=tmp_path)[:]
    (folder,) = kept(tmp_path)
    data = next(folder.glob("*.arrow"))
    content = data.read_bytes()
    if damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "swap a byte":
        data.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage.startswith("no"):
        (data if damage == "no data" else folder / "complete.json").unlink()
    else:
        (folder / "complete.json").write_text(damage)
    assert MFASynthetic(4, "drawn", cache_dir=tmp_path)[:] == expected
    assert "is damaged" in caplog.text and kept(tmp_path) == [folder]


def test_what_datasets_keeps_beside_the_rows_damages_nothing(tmp_path, caplog):
    rows = MFASynthetic(48, "drawn", cache_dir=tmp_path)
    rows.select([5, 3, 40]).flatten_indices()  # writes a file into the folder
    (folder,) = kept(tmp_path)
    assert list(folder.glob("cache-*"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert MFASynthetic(48, "drawn", cache_dir=tmp_path)["video"][:] == rows["video"][:]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "damaged" not in caplog.text


def test_a_full_disk_and_a_file_in_the_folders_place_are_named_and_nothing_is_left(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"the disk is full") as caught:
        patch.setattr(dataset_cache, "checksum", full)
        MFASynthetic(4, "drawn", cache_dir=tmp_path)
    assert caught.value.errno == errno.ENOSPC and not kept(tmp_path)
    free = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="about 1 MB are needed"):
        patch.setattr(shutil, "disk_usage", lambda _: free)
        MFASynthetic(16, "drawn", cache_dir=tmp_path)
    MFASynthetic(4, "drawn", cache_dir=tmp_path)
    (folder,) = kept(tmp_path)
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(OSError, match=r"cache_dir: .* is a file, expected a folder.*another cache_dir"):
        MFASynthetic(4, "drawn", cache_dir=tmp_path)
    with pytest.raises(OSError, match="cannot be made"):
        MFASynthetic(4, "drawn", cache_dir=folder / "below")
    assert folder.read_text() == "mine" and kept(tmp_path) == [folder]


def _fill(folder, barrier, answers):
    barrier.wait()
    rows = MFASynthetic(48, "drawn", cache_dir=folder)
    answers.put(hashlib.sha256(b"".join(np.asarray(row["image"]).tobytes() for row in rows)).hexdigest())


def test_two_processes_fill_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    pixels = b"".join(draw_example(index, style="drawn")[0].tobytes() for index in range(48))
    assert found == {hashlib.sha256(pixels).hexdigest()}
    assert [worker.exitcode for worker in workers] == [0, 0] and len(kept(tmp_path)) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path, cached):
    MFASynthetic(4, "drawn", cache_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    if not cached:
        shutil.rmtree(folder)
    with subprocess.Popen(["true"]) as dead:
        pass
    (tmp_path / f".part-{files._machine()}-{dead.pid}-1-0" / "built").mkdir(parents=True)
    (tmp_path / f".{folder.name}.lock").touch()
    files._SWEPT.clear()  # as in a new process
    MFASynthetic(4, "drawn", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_saved_data_set_replaces_another_and_nothing_else(tmp_path):
    old, new = (Dataset.from_dict({"row": [number]}) for number in (1, 2))
    for rows in (old, new):
        dataset_cache.save_whole(rows, tmp_path / "rows")
        assert load_from_disk(tmp_path / "rows")["row"][:] == rows["row"][:]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds no data set, and is kept"):
        dataset_cache.save_whole(old, tmp_path / "mine")
