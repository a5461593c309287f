"""Faces in images, folders, videos or a camera: action units, emotions, landmarks, a row a face.

mf2 face.png --aligned                      one face, every figure with its threshold
mf2 photos -o faces.csv                     a folder and all below it; the same command continues it
mf2 film.mp4 --fps 5 -o film.parquet        five frames of each second; faces keep their number
mf2 --camera --seconds 30                   the first camera, as a table
mf2 photos --why pictures                   and of every face a page that shows why
mf2 --picture faces.csv                     contact sheet and timelines of rows, also of OpenFace, py-feat, LibreFace
mf2 photos -o faces.csv --shard 2/8         the second of eight parts; `mf2 merge faces.csv` joins their outputs
mf2 compare a.csv b.csv                     how two files of rows agree, AU by AU, without the media
mf2 events film.csv                         blinks and other AUs of followed faces: start, peak, end
mf2 certify photos                          torch, ONNX, 8 bits, pipeline and command: the same answers?
mf2 setup                                   once: fetch the networks that find faces in photographs
"""

import argparse
import contextlib
import dataclasses
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from configuration_mf2.version import VERSION


EXIT_CODES = """exit codes:
  0  everything was analysed
  1  done, but something was left out (the summary says what and why)
  2  wrong options, or no model, detector or camera
  3  nothing could be analysed
  4  the output cannot be written (disk full, no rights, another run's file)
  130, 143  stopped by Ctrl-C or a kill; the rows so far are there, and the same command continues (a camera's
            run is ended by Ctrl-C as usual: 0)
"""


class _Terminated(KeyboardInterrupt):
    """A kill that asks (SIGTERM): ends like Ctrl-C."""


COMMANDS = {
    "setup": "mf2face.inference.setup",
    "merge": "mf2face.inference.shards",
    "compare": "mf2face.inference.compare",
    "events": "mf2face.inference.events",
    "certify": "mf2face.inference.certify",
}
"""First word -> the module whose `main` takes the rest. A folder of such a name is ./setup."""


def build_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    words = {"usage": "mf2 INPUTS... [options]", "description": __doc__, "epilog": EXIT_CODES}
    parser = argparse.ArgumentParser(prog="mf2", formatter_class=form, **words)
    add = parser.add_argument
    add("inputs", nargs="*", help="images, folders, videos, or a .txt file with a path a line")
    add("--camera", nargs="?", const=0, type=int, metavar="NUMBER", help="a camera, the first unless named")
    add("--version", action="store_true", help="print the version")
    add("--quiet", action="store_true", help="no progress and no summary")

    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", metavar="FILE", help="rows as .csv, .jsonl or .parquet; a table unless given")
    add("--format", choices=("table", "csv", "jsonl", "parquet"), help="by the output's ending unless given")
    add("--overwrite", action="store_true", help="start the output anew instead of continuing it")
    shards = "part I of N of the inputs, for N machines; FILE.csv becomes FILE-I-of-N.csv; see `mf2 merge --help`"
    add("--shard", metavar="I/N", help=shards)

    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME", help="a folder or a name on the Hub; else the small synthetic one")
    add("--adapter", metavar="NAME", help="of the model, or with its own base")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    engines = {"choices": ("torch", "onnx", "int8"), "default": "torch"}
    add("--engine", **engines, help="onnx, int8: on a CPU; exported at the first use")
    add("--batch_size", type=int, metavar="N", help="chosen by measurement unless given")
    add("--thresholds", type=float, metavar="P", help="of all action units; the model's own unless given")
    add(
        "--confidence", type=float, metavar="P", help="such as 0.9: also active, at rest or cannot tell, by calibration"
    )
    add("--caption", action="store_true", help="a sentence by the model as well (slower)")
    neutral = "a picture of the person's neutral face, or auto: the quiet part of each track; adds columns AU12_rel"
    add("--neutral", metavar="FILE|auto", help=neutral)

    group = parser.add_argument_group("where faces are")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--aligned", action="store_true", help="each image is one face that fills it (no detector)")
    where.add_argument(
        "--landmarks",
        metavar="WHERE",
        help="mediapipe or face_alignment; insightface112 or ffhq: each image is a crop in that alignment; or a csv "
        "with 68 points a face: x_0..x_67, y_0..y_67, input, frame",
    )
    group.add_argument("--yes", action="store_true", help="set up the detector if there is none (7 MB, by pip)")

    add = parser.add_argument_group("videos and cameras").add_argument
    add("--every", type=int, default=1, metavar="N", help="every n-th frame")
    add("--fps", type=float, metavar="N", help="so many frames a second, by the video's clock")
    add("--seconds", type=float, metavar="N", help="of a video or a camera, at most so long")
    add("--annotate", metavar="FILE.mp4", help="one video again, with its faces, decisions, and the last ten seconds")
    add("--live", action="store_true", help="show a camera or video on a page of this machine, with bars and strip")
    osc = "send AUs as ARKit's blendshapes to this UDP port of this machine (OSC; see mf2face/inference/live.py)"
    add("--osc", type=int, metavar="PORT", help=osc)

    add = parser.add_argument_group("pictures").add_argument
    add("--why", metavar="FOLDER", help="pictures there: where the model looked, what it wrote; PNG and HTML")
    add("--occlusion", action="store_true", help="with --why: also hide each AU's region and ask again")
    add("--picture", metavar="ROWS", help="of a file of rows, without a model; into --why, or beside it")
    return parser


def main(argv: Sequence[str] | None = None, *, detector: Any = None, model: Any = None) -> int:
    """detector, model: objects that stand in for the usual ones, when this is called from Python."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return _command(*argv)
    parser = build_parser()
    given = parser.parse_args(argv)
    inputs: list[str | int] = [*given.inputs, *([] if given.camera is None else [given.camera])]
    if given.version:
        print(f"mf2face {VERSION}")
        return 0
    if wrong := _wrong_options(given, inputs):
        parser.error(wrong)
    if given.picture is not None:
        try:
            return _picture(given)
        except ImportError as error:
            return _fail(2, ImportError(f"--picture needs the full package ({error}): pip install mf2face"))
    with _quiet_libraries(), _kill_like_interrupt():
        try:
            return _run(given, inputs, detector, model)
        except BrokenPipeError:  # `mf2 ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            return _stopped(stop)


def _command(name: str, *rest: str) -> int:
    try:
        run = importlib.import_module(COMMANDS[name]).main
    except ImportError as error:
        return _fail(2, ImportError(f"{name} needs the full package ({error}): pip install mf2face"))
    from mf2face.inference.rows import OutputError

    try:
        return run(rest)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return _fail(4 if isinstance(error, OutputError) else 2, error, f"mf2 {name}")


def _wrong_options(given: argparse.Namespace, inputs: Sequence[str | int]) -> str | None:
    if given.occlusion and (given.why is None or given.picture is not None):
        return "--occlusion: got no faces to explain, expected images and --why FOLDER with it"
    if given.annotate is not None:
        if not given.annotate.endswith(".mp4") or len(inputs) != 1 or given.camera is not None:
            return "--annotate: expected one video as input and a name that ends in .mp4"
        if given.output is not None and os.path.exists(given.output) and not given.overwrite:
            return "--annotate: a run that is continued has only the rest of its frames; add --overwrite"
        if given.shard is not None:
            return "--annotate, --shard: expected one of them: a video is in one shard as a whole"
    if given.osc is not None and not 0 < given.osc < 65536:
        return f"--osc: got {given.osc}, expected a port from 1 to 65535"
    if given.neutral == "auto" and given.output is None:
        return "--neutral auto: got no output, expected -o FILE: it needs whole tracks"
    if given.picture is not None:
        return "--picture: got inputs too, expected a file of rows alone" if inputs else None
    if not inputs:
        return "got no input, expected images, folders, videos, a .txt list of them, or --camera"
    missing = [one for one in given.inputs if not os.path.exists(one)]
    if missing and len(missing) == len(inputs):
        return f"there is no {missing[0]}" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
    return None


def _run(given: argparse.Namespace, inputs: list[str | int], detector: Any, model: Any) -> int:
    # --help and a wrong option need none of them.
    from mf2face.inference.analyze import Options, prepare, run_into_file
    from mf2face.inference.rows import OutputError, format_of
    from mf2face.inference.shards import Shard

    why, shard = None, None
    try:
        format = _format(given, format_of)
        if given.shard is not None:
            shard = Shard.parse(given.shard)
            for name in ("output", "why"):
                if getattr(given, name) is not None:
                    setattr(given, name, str(shard.path(getattr(given, name))))
        named = {field.name: getattr(given, field.name) for field in dataclasses.fields(Options)}
        if given.live or given.osc is not None:  # frames as they come, not in batches
            named["batch_size"] = 1
        options = Options(**named | {"model": model or given.model})
        if given.yes and detector is None and not given.aligned and given.landmarks in (None, "mediapipe"):
            from mf2face.inference.setup import setup_mediapipe

            setup_mediapipe()
        progress = not given.quiet and sys.stderr.isatty()
        analysis = prepare(inputs, options, detector=detector, progress=progress, shard=shard)
        if given.why is not None:
            from mf2face.inference.explain.folder import WhyFolder

            why = WhyFolder(given.why, analysis, occlusion=given.occlusion)
    except OutputError as error:
        return _fail(4, error)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return _fail(2, error)
    if not given.quiet:
        loaded, source = analysis.model, analysis.source.name
        _say(f"model: {loaded.name}{f' with {loaded.adapter}' if loaded.adapter else ''}, {loaded.trained_on}")
        graded = "; the model's grades were measured with MediaPipe's" * bool(loaded.grades and source != "mediapipe")
        _say(f"landmarks: {_SOURCES.get(source, source)}{graded}")
        if analysis.neutral_marks:
            _say(
                f"neutral: {given.neutral} may not be neutral: {analysis.neutral_marks}; columns AU.._rel start from it"
            )
    summary = analysis.summary
    try:
        with _frame_views(given, analysis):
            if given.output is not None:
                run_into_file(analysis, given.output, format=format, overwrite=given.overwrite)
            else:
                sink = _screen(analysis, format)
                try:
                    analysis.run(sink if why is None else why.beside(sink))
                finally:
                    sink.close()
        nothing = not summary.frames and not summary.resumed and analysis.files != []  # a shard may have no input
        code = 3 if nothing else _finish(given, why) or int(summary.left_out > 0)
    except OutputError as error:
        code = _fail(4, error)
    except BrokenPipeError:
        raise
    except OSError as error:  # a camera that is not there
        if not summary.frames:
            summary.stopped = None  # it is said once
        code = _fail(1 if summary.frames else 2, error)
    except KeyboardInterrupt as stop:
        alone = all(isinstance(one, int) for one in analysis.inputs) and not isinstance(stop, _Terminated)
        if alone:
            summary.stopped = None
        code = _finish(given, why) if alone else _stopped(stop)
    if not given.quiet:
        _say(summary.text())
    return code


@contextlib.contextmanager
def _frame_views(given: argparse.Namespace, analysis: Any) -> Iterator[None]:
    """What takes every frame with its rows: an annotated video, a live page, a stream of blendshapes."""
    if given.annotate is None and not given.live and given.osc is None:
        yield
        return
    from mf2face.inference.annotate import AnnotatedVideo, FrameView
    from mf2face.inference.live import BlendshapeStream, LiveView

    about, views = analysis.model.about, []
    with contextlib.ExitStack() as stack:
        if given.annotate is not None:
            draw = FrameView(analysis.columns, analysis.thresholds, about).draw
            views.append(stack.enter_context(AnnotatedVideo(given.annotate, draw)))
        if given.live:
            draw = FrameView(analysis.columns, analysis.thresholds, about, live=True).draw
            views.append(stack.enter_context(LiveView(draw, about, _open_page)))
        if given.osc is not None:
            views.append(stack.enter_context(BlendshapeStream(given.osc, analysis.summary.skip)))
        analysis.on_frame = lambda frame, rows: [view.add(frame, rows) for view in views]
        yield


def _open_page(address: str) -> None:
    import webbrowser

    _say(f"live: {address}")
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):  # no text browser
        webbrowser.open(address)


def _finish(given: argparse.Namespace, why: Any) -> int:
    from mf2face.inference.rows import OutputError

    try:
        made = None if why is None else why.finish(given.output)
    except OutputError as error:
        return _fail(4, error)
    if made and not given.quiet:
        _say(f"pictures: {given.why} ({made})")
    return 0


def _picture(given: argparse.Namespace) -> int:
    from mf2face.inference.explain.folder import picture
    from mf2face.inference.rows import OutputError

    left_out: list[tuple[str, str]] = []
    try:
        folder, made = picture(given.picture, given.why, lambda *why: left_out.append(why))
    except OutputError as error:
        return _fail(4, error)
    except ValueError as error:
        return _fail(2, error)
    if not given.quiet:
        _say(f"pictures: {folder} ({made})")
    for name, why in left_out:
        _say(f"left out: {name}: {why}")
    return 1 if left_out else 0


_SOURCES = {
    "template": "template, each image is taken for one ready-aligned face",
    "insightface112": "insightface's template, each image is taken for one face aligned to it",
    "ffhq": "FFHQ's template, each image is taken for one face aligned to it",
    "given": "given with the images",
    "face_alignment": "found by face-alignment",
    "mediapipe": "found by MediaPipe's networks",
}


def _format(given: argparse.Namespace, format_of: Any) -> str:
    if given.output is None:
        if given.format == "parquet":
            raise ValueError("--format parquet: got no output, expected -o FILE.parquet; a terminal cannot show it")
        return given.format or "table"
    if given.format == "table":
        raise ValueError("--format table: got an output file too, expected one of them: a table is for the terminal")
    return format_of(given.output, given.format)


class _Lines:
    """CSV or JSON lines on the standard output."""

    def __init__(self, out: TextIO, format: str, names: list[str]) -> None:
        from mf2face.inference.rows import csv_lines, csv_rows, json_lines

        self.out, self.names, self.lines = out, names, csv_rows if format == "csv" else json_lines
        if format == "csv":
            out.write(csv_lines([names]))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        self.out.write(self.lines(rows, self.names))
        self.out.flush()

    def close(self) -> None:
        self.out.flush()


def _screen(analysis: Any, format: str) -> Any:
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text: none stops the run
        sys.stdout.reconfigure(errors="backslashreplace" if format == "table" else "surrogateescape")
    if format != "table":
        return _Lines(sys.stdout, format, analysis.columns.names)
    from mf2face.inference.media import is_video
    from mf2face.inference.table import FaceTable

    alone = analysis.inputs[0] if len(analysis.inputs) == 1 else 0
    detailed = isinstance(alone, str) and Path(alone).is_file() and not is_video(alone)
    return FaceTable(sys.stdout, analysis.columns, analysis.thresholds, analysis.model.grades, detailed=detailed)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(code: int, error: BaseException, command: str = "mf2") -> int:
    _say(f"{command}: {error}")
    return code


def _stopped(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Loading bars and hints of the libraries are no part of what was asked; their errors are."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        logging.root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.root.setLevel(level)


@contextlib.contextmanager
def _kill_like_interrupt() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
