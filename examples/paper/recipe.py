"""From a licensed corpus to the MFA paper's Tables II to V, in steps that can each be repeated; docs/paper.md explains.

python examples/paper/recipe.py aff_wild2 ~/corpora/Aff-Wild2 --dry_run    # hours, electricity, disk of each step
python examples/paper/recipe.py aff_wild2 ~/corpora/Aff-Wild2 [--preset paper-giant] [--steps build captions ...]
    [--launch "accelerate launch --config_file examples/accelerate/ddp.yaml"] [train.py's arguments, for all runs]
python examples/paper/recipe.py rendered 600 --preset tiny --writer rule   # the same on rendered (synthetic) faces

Each step is a command that is printed before it runs. A step that has ended is passed over, an interrupted one goes on.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "benchmark")]

from report import markdown_table, read_json, record_run, write_json, write_text  # noqa: E402
from tables_cells import CELLS  # noqa: E402
from tables_report import papers_table  # noqa: E402

from mf2face.command_line import run_as_command  # noqa: E402
from mf2face.data.corpora.read import SOURCES  # noqa: E402
from mf2face.training.tasks import PRESETS  # noqa: E402


OURS = ("mf2", "mf2_dfn", "mf2_without_emo_vl", "mf2_without_au_vl", "mf2_au_stage1", "mf2_au_to_emotion")
COMPARED = ("exp_blip", "hsemotion", "me_graph_au", "vl_fau", "exp_blip_au_to_emotion")
STEPS = ("build", "captions", *OURS, "paper_dfn", "compared", "tables")
TABLES = ("II", "III", "IV", "V")
SCORES = ("au_f1_macro", "au_f1_tuned_macro", "emotion_ovr_accuracy", "emotion_top1")
PAPERS_IMAGES = 39_150  # so many synthetic faces have the paper's 31,320 for training


class Recipe:
    def __init__(self, given: argparse.Namespace, further: list[str]) -> None:
        self.given, self.further, self.work = given, further, given.work_dir
        self.captions = self.work / "captions"
        self.captioned = self.captions / "dataset"
        self.size = PRESETS[given.preset].options["model_size"]

    def command(self, step: str) -> list[str]:
        """What runs a step, but for the interpreter."""
        given, examples = self.given, ROOT / "examples"
        if step == "build":
            options = ["--paper", "--landmarks", given.landmarks] if given.corpus == "aff_wild2" else []
            return [str(examples / "build_dataset.py"), given.corpus, given.folder, str(self.work / "mfa"), *options]
        if step == "captions":
            options = ["--dataset", str(self.work / "mfa"), "--out", str(self.captions), "--writer", given.writer]
            options += ["--protocol", "paper"] if given.writer == "chat" else []
            return [str(examples / "write_captions.py"), *options]
        if step == "compared":
            options = ["--dataset", str(self.captioned), "--model_size", "tiny" if self.size == "tiny" else "base"]
            options += ["--work_dir", str(self.work / "compared"), "--epochs", str(max(1, round(given.epochs)))]
            options += ["--tables", *TABLES, "--systems", *COMPARED, "--seeds", "0"]
            return [str(examples / "benchmark" / "tables.py"), *options, *self.further]
        return self.training(step, ["--dataset", str(self.captioned)])

    def training(self, step: str, data: list[str]) -> list[str]:
        """Arguments of train.py behind its name; `paper_dfn` is the paper's adapter to the letter."""
        if step == "paper_dfn":
            fitting = [f"--{name}={value}" for name, value in PRESETS[self.given.preset].training.items()]
            own, base = ["--preset", "paper-dfn", "--model_size", self.size, *fitting], "mf2"
        else:
            cell = CELLS[step]
            own, base = [*cell.arguments, "--preset", self.given.preset], cell.after
        start = ["--model_name_or_path", str(self.work / base)] if base else []
        shared = [*data, "--num_train_epochs", str(self.given.epochs), *self.further]
        return [str(ROOT / "train.py"), *own, *start, *shared, "--output_dir", str(self.work / step)]

    def run(self, step: str) -> None:
        ended = self.work / ".ended" / step
        if ended.is_file() and step != "tables":
            print(f"{step}: done before")
            return
        if step == "tables":
            return self.write_tables()
        if step == "build" and self.given.corpus == "rendered":
            return render(int(self.given.folder), self.work / "mfa")
        command = self.command(step)
        launched = shlex.split(self.given.launch) if command[0].endswith("train.py") and self.given.launch else []
        command = [*(launched or [sys.executable]), *command]
        print(f"{step}: {shlex.join(command)}", flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
        write_text(ended, shlex.join(command))

    def write_tables(self) -> None:
        folders = {name: self.work / name for name in OURS} | {
            name: self.work / "compared" / f"{name}-0" for name in COMPARED
        }
        found = {name: read_json(folder / "metrics.json") for name, folder in folders.items()}
        runs = {name: [metrics] for name, metrics in found.items() if metrics and CELLS[name].title}
        data = "rendered (synthetic) faces" if self.given.corpus == "rendered" else self.given.corpus
        parts = [f"# The paper's tables on {data}"]
        parts.append(f"MF²: `--preset {self.given.preset}`, {self.given.epochs:g} epochs, one seed.")
        parts += [f"## Table {name}\n\n{papers_table(name, runs)}" for name in TABLES]
        parts += [f"{name}: not run" for name, metrics in found.items() if not metrics]
        if exact := read_json(self.work / "paper_dfn" / "metrics.json"):
            named = ", ".join(f"{name} {exact[name]:.4f}" for name in SCORES)
            parts.append(f"The paper's DFN to the letter: {named}")
        write_text(self.work / "tables.md", "\n\n".join(parts) + "\n")
        print(f"tables: {self.work / 'tables.md'}; cards: README.md in each run's folder")

    def keep_scores(self) -> None:
        """In `--json`; beside other kept results, it is also noted that the recipe ran."""
        import torch

        runs = {step: read_json(self.work / step / "metrics.json") or {} for step in (*OURS, "paper_dfn")}
        found = {f"{step}/{name}": run[name] for step, run in runs.items() for name in SCORES if name in run}
        settings = f"{self.given.corpus}, --preset {self.given.preset}, {self.given.epochs:g} epochs"
        if set(STEPS) == set(self.given.steps):
            device = "cuda" if torch.cuda.is_available() else "cpu"
            record_run(self.given.json, "the recipe from build to tables", device, settings)
        write_json(self.given.json, found)

    def estimate(self, steps: list[str]) -> list[dict[str, float]]:
        """A dry run of each training step; the corpus need not be there."""
        import train

        data = ["--dataset", str(self.captioned)]
        if not self.captioned.is_dir():
            count = self.given.folder if self.given.corpus == "rendered" else str(PAPERS_IMAGES)
            data = ["--num_images", count, "--style", "studio"]
        rows, found, given = [], [], self.given
        with tempfile.TemporaryDirectory() as folder:
            for step in (step for step in steps if step in (*OURS, "paper_dfn")):
                arguments = self.training(step, data)[1:]
                if "--model_name_or_path" in arguments:
                    place = arguments.index("--model_name_or_path") + 1
                    if not Path(arguments[place], "config.json").is_file():
                        arguments[place] = untrained(self.size, step, Path(folder))
                figures = train.main([*arguments, "--dry_run", "True"])
                hours = sum(figures.get(name, 0) for name in ("hours", "evaluation_hours", "store_hours"))
                cost = hours * given.watts / 1000 * given.euros_per_kwh
                disk = figures["output_gb"] + figures.get("store_gb", 0)
                found.append({"step": step, "hours": hours, "euros": cost, "disk_gb": disk, **figures})
                rows.append([step, f"{hours:.2f}", f"{cost:.2f}", f"{disk:.2f}", f"{figures['memory_gb']:.2f}"])
        titles = ["step", "hours", "electricity, EUR", "disk, GB", "memory, GB"]
        print(f"\n{markdown_table(titles, rows)}\n")
        print(f"At {given.watts:g} W and {given.euros_per_kwh:g} EUR a kWh, on this device; the other steps are short.")
        return found


def untrained(size: str, step: str, folder: Path) -> str:
    """In place of a checkpoint that an earlier step has not made yet: the same costs."""
    from configuration_mf2 import MF2Config
    from modeling_mf2 import MF2ForFaceAnalysis
    from processing_mf2 import MF2Processor

    branches = {"use_emo_branch": step != "mf2_au_to_emotion"}
    target = folder / "-".join([size, *(name for name, value in branches.items() if value)])
    if not target.is_dir():
        config = MF2Config.from_size(size, **branches)
        MF2ForFaceAnalysis(config).save_pretrained(target)
        MF2Processor.for_model(config).save_pretrained(target)
    return str(target)


def render(count: int, folder: Path) -> None:
    """Rendered people in the corpus's place; captions are written by the next step, as for a corpus."""
    from mf2face.data.cache import save_whole
    from mf2face.data.synthetic.faces import MFASynthetic

    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_whole(MFASynthetic(count, "studio"), folder)
    print(f"build: {count} rendered (synthetic) faces in {folder}")


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("corpus", choices=(*SOURCES, "rendered"))
    parser.add_argument("folder", help="of the corpus; rendered: how many faces")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/paper"))
    presets = [name for name, preset in PRESETS.items() if preset.options.keys() <= {"model_size", "tower_dtype"}]
    parser.add_argument("--preset", default="paper-giant", choices=presets)
    parser.add_argument("--epochs", type=float, default=30, help="of each run; the paper's 30")
    parser.add_argument("--landmarks", default="template", help="build: of Aff-Wild2's aligned crops")
    parser.add_argument("--writer", default="chat", choices=("chat", "rule"), help="captions: GPT-4o, or by rule")
    parser.add_argument("--launch", help="what starts train.py in place of python, such as accelerate launch ...")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--dry_run", action="store_true", help="what the training steps need; nothing is kept")
    parser.add_argument("--watts", type=float, default=1000, help="dry run: of the machine under load")
    parser.add_argument("--euros_per_kwh", type=float, default=0.3)
    parser.add_argument("--json", type=Path, help="write the dry run's figures, or every run's scores, to this file")
    given, further = parser.parse_known_args(argv)
    recipe = Recipe(given, further)
    if given.dry_run:
        found = recipe.estimate(given.steps)
        if given.json:
            write_text(given.json, json.dumps(found, indent=1) + "\n")
        return found
    for step in given.steps:
        recipe.run(step)
    if given.json:
        recipe.keep_scores()
    return []


if __name__ == "__main__":
    run_as_command(main)
