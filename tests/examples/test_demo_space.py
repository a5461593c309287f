"""What is put into a Space, and what is refused."""

import shutil
from pathlib import Path

import pytest
from demo_parts import load, write_adapters


space, Adapter = load("demo_space"), load("demo_engine").Adapter


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mild` and `wild`, and a checkpoint of a run, which is no adapter that anybody chose."""
    folder = write_adapters(tmp_path_factory.mktemp("made") / "adapters")
    shutil.copytree(folder / "mild", folder / "checkpoint-10")
    return folder


def names(target: Path) -> list[str]:
    return sorted(path.parent.name for path in target.glob("adapters/*/adapter_config.json"))


def test_it_takes_folders_of_adapters_as_the_page_does(adapters: Path, tmp_path: Path) -> None:
    target = space.main([str(tmp_path / "all"), "--adapters", str(adapters)])
    assert names(target) == ["mild", "wild"] == sorted(one.label for one in Adapter.find([adapters]))
    assert sorted(one.label for one in Adapter.find([target / "adapters"])) == ["mild", "wild"]
    assert (target / "adapters" / "wild" / "adapter_model.safetensors").is_file() and (target / "app.py").is_file()
    assert not (target / "demo_space.py").exists()
    one = space.main([str(tmp_path / "one"), "--adapters", str(adapters / "mild"), str(adapters / "mild")])
    assert names(one) == ["mild"]
    assert not (space.main([str(tmp_path / "none")]) / "adapters").exists()


def test_what_it_cannot_take_leaves_nothing_behind(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, empty, other = tmp_path / "space", tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    shutil.copytree(adapters / "mild", other / "mild")
    shutil.copytree(adapters / "wild", foreign := tmp_path / "foreign")
    config = (foreign / "adapter_config.json").read_text()
    (foreign / "adapter_config.json").write_text(config.replace("mf2-tiny-synthetic", "somebody-elses"))
    refused = {
        f"{other / 'mild'} and .*{adapters.name}/mild|{adapters.name}/mild and .*{other / 'mild'}": [adapters, other],
        "empty, expected an adapter's folder, or a folder of such folders": [adapters, empty],
        "checkpoint-10 .*expected an adapter's folder": [adapters / "checkpoint-10"],
        "belongs to the model 'somebody-elses', expected 'mf2-tiny-synthetic'": [foreign],
    }
    for told, places in refused.items():
        with pytest.raises(ValueError, match=told):
            space.write_space(target, places)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "foreign", "other"]
    real = shutil.copyfile

    def full(source: Path, place: Path) -> None:
        if Path(source).suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        real(source, place)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        space.write_space(target, [adapters])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "foreign", "other"]
    (target := tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there already"):
        space.write_space(target)
