"""What README, pages and notebook show is executed, and every figure in them is one that a measurement wrote."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from example_scripts import load
from strangers import run


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)

EACH_ALONE = """
import json, os, sys, traceback
import cv2, datasets, numba, peft, timm, torch, torchvision, transformers  # once, before the processes part
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Trainer, pipeline
for name, code in json.loads(sys.argv[1]):
    if os.fork() == 0:
        try:
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{name} failed")
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def notebook() -> str:
    """The code of examples/start.ipynb."""
    cells = json.loads((ROOT / "examples" / "start.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def run_each(programs: list[tuple[str, str]], folder: Path) -> str:
    (folder / "model_cards").symlink_to(ROOT / "model_cards")
    return run(EACH_ALONE, json.dumps(programs), cwd=folder, HF_HOME=folder / "home")


def programs_of(page: Path) -> list[tuple[str, str]]:
    return [(f"{page.name} {i}", code) for i, code in enumerate(blocks(page, "python"))]


def test_every_python_block_of_the_readme_runs_alone_in_a_fresh_process(tmp_path: Path) -> None:
    programs = programs_of(ROOT / "README.md")
    assert len(programs) >= 3
    printed = run_each(programs, tmp_path)
    assert re.search(r"'label': 'AU\d+'", printed)
    (answer,) = re.findall(r"```python\nimport mf2face\n.*?```\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    assert answer in printed, "run docs/figures.py --pictures"


@pytest.mark.slow
def test_the_notebook_and_the_pages_blocks_run(tmp_path: Path) -> None:
    pages = [program for page in PAGES[1:] for program in programs_of(page)]
    printed = run_each([("start.ipynb", notebook()), *pages], tmp_path)
    assert re.search(r"'name': 'lip corner puller', 'probability': 0\.\d+, 'threshold': 0\.\d+", printed)


def test_the_readme_is_short_and_has_its_commands() -> None:
    assert len(README.split()) <= 900
    first, test = blocks(ROOT / "README.md", "bash")[:2]
    assert first.startswith("pip install -e . && accelerate launch ")
    assert "<!-- test command -->\n```bash\n" + test in README
    assert 'pip install -e ".[dev]"' in test and "pytest" in test
    assert len(load("benchmark/first_minutes").commands()) == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_extras_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    scripts = [file for command in blocks(page, "(?:bash|text)") for file in re.findall(r"[\w/.-]+\.py\b", command)]
    scripts += re.findall(r"`(?:python )?([\w/.-]+/[\w.-]+\.(?:py|md|yaml|ipynb))", text)
    scripts += re.findall(r"examples/benchmark/results/\w+\.json", text)
    missing = [file for file in scripts if not (ROOT / file.removeprefix("../")).is_file()]
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)]
    missing += [link for link in links if not (page.parent / link).is_file()]
    assert missing == []
    extras = set(re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE))
    assert {extra for named in re.findall(r'"\.\[([\w,]+)\]"', text) for extra in named.split(",")} <= extras


VERSIONS = {"3.11", "3.12", "3.13", "3.14", "5.24", "0.22", "0.2", "2.1", "2.0", "1.4", "1.1", "2.2", "4.0"}
FACTS = {"0.5", "0.4", "0.8", "3.5", "186.7", "373.4", "52.88"}  # a threshold, sizes, the paper's parameters
FACTS |= {"0.05", "0.07", "0.1", "0.30", "4.5", "5.98"}  # the paper's settings; a price; sizes by arithmetic


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_is_one_that_a_measurement_wrote(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert figures.filled(text) == text, "run docs/figures.py"
    assert not re.search(rf"^{figures.FIGURE.pattern}", text, flags=re.MULTILINE)
    known = set(FACTS)
    for name in re.findall(r"results/(\w+)\.json", text):
        values = [value for value in figures.results(name).values() if isinstance(value, int | float)]
        known |= {
            form.format(value).rstrip("%") for value in values for form in ("{:.1f}", "{:.2f}", "{:.3f}", "{:.1%}")
        }
    text = figures.TABLE.sub(
        "", figures.FIGURE.sub("", re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.DOTALL))
    )
    text = re.sub(r"\d+\.\d+\.\d+", "", text)  # versions of packages
    assert set(re.findall(r"(?<![\w.])\d+\.\d+", text)) - VERSIONS - known == set()


def test_every_figure_of_the_card_is_in_its_runs_files() -> None:
    folder = ROOT / "model_cards" / "mf2-tiny-rendered"
    files = [folder / f"{name}.json" for name in ("metrics", "reliability", "run", "processor_config", "config")]
    numbers = [float(n) for file in files for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", file.read_text())]
    metrics = figures.results("checkpoint")
    counts = [value for name, value in metrics.items() if name.startswith("emotion_n/")]
    most, kinds = max(counts) / sum(counts), len(counts)  # always the commonest emotion
    numbers += [most, 1 / kinds, 2 * most / (1 + most) / kinds, 1 - 2 * (1 - most) / kinds]
    active = [value for name, value in metrics.items() if name.startswith("au_prevalence/")]
    numbers += [2 * share / (1 + share) for share in active] + [metrics["wall_seconds"] / 60]
    forms = ("{:.1f}", "{:.2f}", "{:.3f}", "{:.4f}", "{:.1%}", "{:g}")
    known = {form.format(number).strip("-%") for number in numbers for form in forms}
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", (folder / "README.md").read_text(), flags=re.DOTALL)
    text = text[text.index("---", 3) :]  # metadata for the Hub
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\.\d)", text)) - known - VERSIONS == set()


def test_the_counts_are_those_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    counted = load("benchmark/params").main(["--size", "giant"])
    capsys.readouterr()
    assert counted == figures.results("params_giant")
    assert counted["both_trainable"] == 2 * counted["emo_vl_trainable"] == 2 * counted["au_vl_trainable"] == 373_405_308


def test_figures_are_filled_from_files_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "results", lambda name: {"share": 0.125, "all/a/mean": 1234.5})
    monkeypatch.setitem(figures.TABLES, "made", lambda: figures.table("a | b", {"x": ["1"]}))
    assert figures.filled("in <!--f.share:.1%-->99.9 % <!--f.all/a/mean:,.0f-->1,000.") == (
        "in <!--f.share:.1%-->12.5 % <!--f.all/a/mean:,.0f-->1,234."
    )
    assert (
        figures.filled("<!--table:made-->\n| old |\n\nend")
        == "<!--table:made-->\n| a | b |\n|---|---|\n| x | 1 |\n\nend"
    )
    for broken, error in (("<!--f.none:.1f-->1", KeyError), ("<!--table:none-->\n", KeyError)):
        with pytest.raises(error):
            figures.filled(broken)
