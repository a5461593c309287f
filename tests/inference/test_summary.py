"""What was left out is told with its reason, shortly, however much it was."""

from mf2face.inference.summary import Summary


def test_a_run_in_words() -> None:
    text = Summary(frames=1, faces=2, without_face=1200, seconds=0.5, resumed=3, opened=True).text("out.csv")
    assert "1 image looked at, 2 faces, 2.0 images a second" in text
    assert "1,200 images without a face" in text and "3 inputs stood in out.csv already" in text
    assert text.endswith("rows: out.csv")


def test_reasons_are_shown_first_and_counted_after() -> None:
    summary = Summary()
    for index in range(5000):
        summary.skip(f"{index}.png", "holds zero bytes")
    assert summary.left_out == 5000 and len(summary.skipped) == 1000  # memory stays flat
    lines = summary.text().splitlines()
    assert "left out, 5,000 times:" in lines and "  7.png: holds zero bytes" in lines and len(lines) < 12
    assert "and 4,992 more" in lines[-1] and "'holds zero bytes'" in lines[-1]
    assert summary.facts()["skipped"][0] == {"input": "0.png", "why": "holds zero bytes"}


def test_a_run_that_was_stopped_says_by_what_and_how_it_goes_on() -> None:
    text = Summary(frames=3, stopped="interrupted", opened=True, continues=False).text("out.csv")
    assert text.endswith("the rows so far are in out.csv")  # of a camera
    assert Summary(frames=3, stopped="a full disk").text("not_ours.csv").endswith("a full disk")
    text = Summary(frames=3, stopped="interrupted", opened=True).text("out.csv")
    assert "stopped before the end: interrupted" in text and "the same command continues" in text
