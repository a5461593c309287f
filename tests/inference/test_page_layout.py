"""Pages at the width of a phone, a tablet and a screen, light and dark: nothing overlaps, nothing is too small."""

from pathlib import Path

import pytest
from example_scripts import load
from html_pages import BROWSER, WIDTHS, layout_problems
from picture_faces import a_face, some_rows

from mf2face.inference.explain.face_page import face_html
from mf2face.inference.explain.page import banner
from mf2face.inference.explain.row_pictures import save_contact_html, save_timeline_html


pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


def the_demo() -> str:
    """Its answer about two faces with an adapter, without gradio."""
    view, engine = load("demo/demo_view"), load("demo/demo_engine")
    faces = [a_face("two.png", units=("AU1", "AU12")), a_face("two.png")]
    for place, face in enumerate(faces):
        face.face_id, face.box = place, (5 + 55 * place, 20, 55 + 55 * place, 80)
        face.about |= {"adapter": "mild", "grades": {"AU1": "usable", "AU12": "reliable"}}
    look = engine.Look(engine.Picture("two.png", faces[0].image), faces, [{"AU1": 0.2, "Happiness": 0.4}] * 2, 3)
    head = '<meta name="viewport" content="width=device-width"><style>body { margin: 0; padding: 8px; '
    style = f"background: var(--mf-paper); font: 15px sans-serif; }} * {{ box-sizing: border-box; }} {view.CSS}</style>"
    script = view.RESULT_JS.replace("watch(", "(() => {})(")
    columns = '<div class="contain" style="display: flex; gap: 16px"><div style="flex: 2 1 100px"></div>'
    answer = (
        f'{banner(faces[0].about)}{columns}<div id="result" style="flex: 8 1 340px">{view.answer(look)}</div></div>'
    )
    script = f"<script>const element = document.body;{script}</script>"
    return f'<!doctype html>{head}{style}{view.HEAD}<body class="gradio-container">{answer}{script}</body>'


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overlaps_and_nothing_is_too_small(tmp_path: Path, dark: bool) -> None:
    rows, _ = some_rows(tmp_path, images=4)
    rows.stills[0] |= {"caption": "The face shows anger, with lowered brows.", "caption_disagrees": True}
    (sheet,), (timeline,) = (
        save_contact_html(rows, tmp_path / "sheet.html"), save_timeline_html(rows, "v.mp4", tmp_path / "timeline.html")
    )  # fmt: skip
    face = a_face("a photograph with a long name, taken on a summer day in the garden of the house.png")
    face.sentences["key_au"] = "Key action units: AU25 (lips part) is decisive for happiness."
    demo = the_demo()
    pages = {
        "why.html": face_html(face),
        "demo.html": demo.replace('<body class="', '<body class="dark ') if dark else demo,
    }
    pages |= {path.name: path.read_text(encoding="utf-8") for path in (sheet, timeline)}
    problems = layout_problems(pages, tmp_path, dark=dark)
    assert len(problems) == len(pages) * len(WIDTHS)
    assert {name: wrong for name, wrong in problems.items() if wrong} == {}
