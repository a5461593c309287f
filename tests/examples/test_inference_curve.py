"""The curve of accuracy against cost."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt


FOLDER = Path(__file__).parents[2] / "examples" / "benchmark"


def test_the_number_of_queries_beside_each_point_is_within_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import inference_curve

    queries = (1, 4, 32)
    figures = {f"{name}_{count}": 0.7 for count in queries for name in ("f1", "emotion")}
    figures |= {f"{name}_{count}_sd": 0.01 for count in queries for name in ("f1", "emotion")}
    figures |= {f"cost_{count}{by}": 1 + count / 16 for count in queries for by in ("", "_cpu")}
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    inference_curve.draw_curve(figures, queries, "base", tmp_path / "curve.png")
    monkeypatch.undo()
    (axis,) = drawn[0].axes
    frame = axis.get_window_extent()
    for text in axis.texts:
        extent = text.get_window_extent()
        assert frame.x0 < extent.x0 and extent.x1 < frame.x1 - 2, text.get_text()
    assert [text.get_text() for text in axis.texts] == ["1", "4", "32"]
    plt.close(drawn[0])
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
