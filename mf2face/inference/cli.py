"""Faces in images, folders, videos or a camera: action units, emotions, landmarks, a row a face.

mf2 face.png --aligned                      one face, every figure with its threshold
mf2 photos -o faces.csv                     a folder and all below it; the same command continues it
mf2 film.mp4 --fps 5 -o film.parquet        five frames of each second; faces keep their number
mf2 --camera --seconds 30                   the first camera, as a table
mf2 photos --why pictures                   and of every face a page that shows why
mf2 --picture faces.csv                     contact sheet and timelines of rows that are there
mf2 photos -o faces.csv --shard 2/8         the second of eight parts; `mf2 merge faces.csv` joins their outputs
mf2 setup                                   once: fetch the networks that find faces in photographs
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO


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


def build_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mf2", description=__doc__, epilog=EXIT_CODES, formatter_class=form)
    parser.add_argument("inputs", nargs="*", help="images, folders, videos, or a .txt file with a path a line")
    parser.add_argument(
        "--camera", nargs="?", const=0, type=int, metavar="NUMBER", help="a camera, the first unless named"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="rows as .csv, .jsonl or .parquet; a table unless given")
    parser.add_argument(
        "--format", choices=("table", "csv", "jsonl", "parquet"), help="by the output's ending unless given"
    )
    parser.add_argument("--overwrite", action="store_true", help="start the output anew instead of continuing it")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="part I of N of the inputs, for N machines; FILE.csv becomes FILE-I-of-N.csv; see `mf2 merge --help`",
    )
    parser.add_argument("--model", metavar="NAME", help="a folder or a name on the Hub; else the small synthetic one")
    parser.add_argument("--adapter", metavar="NAME", help="of the model, or with its own base")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--aligned", action="store_true", help="each image is one face that fills it (no detector)")
    where.add_argument(
        "--landmarks",
        metavar="WHERE",
        help="mediapipe or face_alignment; insightface112 or ffhq: each image is a crop in that alignment; or a csv "
        "with 68 points a face: x_0..x_67, y_0..y_67, input, frame",
    )
    parser.add_argument("--yes", action="store_true", help="set up the detector if there is none (7 MB, by pip)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of a video every n-th frame")
    parser.add_argument("--fps", type=float, metavar="N", help="of a video so many frames a second, by its own clock")
    parser.add_argument("--seconds", type=float, metavar="N", help="of a video or a camera, at most so long")
    parser.add_argument("--caption", action="store_true", help="a sentence by the model as well (slower)")
    parser.add_argument(
        "--thresholds", type=float, metavar="P", help="of all action units; the model's own unless given"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="found by itself unless given")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...")
    engines = {"choices": ("torch", "onnx", "int8"), "default": "torch"}
    parser.add_argument("--engine", **engines, help="onnx, int8: on a CPU; exported at the first use")
    parser.add_argument(
        "--why", metavar="FOLDER", help="pictures there: where the model looked, what it wrote; PNG and HTML"
    )
    parser.add_argument("--occlusion", action="store_true", help="with --why: also hide each AU's region and ask again")
    parser.add_argument(
        "--picture", metavar="ROWS", help="of a file of rows, without a model; into --why, or beside it"
    )
    parser.add_argument(
        "--annotate", metavar="FILE.mp4", help="of one video: it again, with boxes, landmarks, active AUs and emotions"
    )
    parser.add_argument(
        "--live", action="store_true", help="show a camera (or video) with bars on a page of this machine"
    )
    osc = "send AUs as ARKit's blendshapes to this UDP port of this machine (OSC, VMC protocol)"
    parser.add_argument("--osc", type=int, metavar="PORT", help=osc)
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    return parser


def main(argv: Sequence[str] | None = None, *, detector: Any = None, model: Any = None) -> int:
    """detector, model: objects that stand in for the usual ones, when this is called from Python."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["setup"]:  # a folder of this name is ./setup
        from mf2face.inference.setup import main as setup

        return setup(argv[1:])
    if argv[:1] == ["merge"]:
        from mf2face.inference.shards import main as merge

        return merge(argv[1:])
    parser = build_parser()
    given = parser.parse_args(argv)
    inputs: list[str | int] = [*given.inputs, *([] if given.camera is None else [given.camera])]
    if given.occlusion and (given.why is None or given.picture is not None):
        parser.error("--occlusion: got no faces to explain, expected images and --why FOLDER with it")
    if given.annotate is not None:
        if not given.annotate.endswith(".mp4") or len(inputs) != 1 or given.camera is not None:
            parser.error("--annotate: expected one video as input and a name that ends in .mp4")
        if given.output is not None and os.path.exists(given.output) and not given.overwrite:
            parser.error("--annotate: a run that is continued has only the rest of its frames; add --overwrite")
        if given.shard is not None:
            parser.error("--annotate, --shard: expected one of them: a video is in one shard as a whole")
    if given.osc is not None and not 0 < given.osc < 65536:
        parser.error(f"--osc: got {given.osc}, expected a port from 1 to 65535")
    if given.picture is not None:
        if inputs:
            parser.error("--picture: got inputs too, expected a file of rows alone")
        try:
            return _picture(given)
        except ImportError as error:
            return _fail(2, ImportError(f"--picture needs the full package ({error}): pip install -e ."))
    if not inputs:
        parser.error("got no input, expected images, folders, videos, a .txt list of them, or --camera")
    missing = [one for one in given.inputs if not os.path.exists(one)]
    if missing and len(missing) == len(inputs):
        parser.error(f"there is no {missing[0]}" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""))
    with _quiet_libraries(), _kill_like_interrupt():
        try:
            return _run(given, inputs, detector, model)
        except BrokenPipeError:  # `mf2 ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except KeyboardInterrupt as stop:
            return _stopped(stop)


def _run(given: argparse.Namespace, inputs: list[str | int], detector: Any, model: Any) -> int:
    # Torch takes seconds to import: --help and a wrong option need it not.
    from mf2face.inference.analyze import prepare, run_into_file
    from mf2face.inference.media import Sampling
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
        names = ("adapter", "aligned", "landmarks", "device", "engine", "caption", "thresholds", "batch_size")
        settings = {name: getattr(given, name) for name in names} | {"detector": detector, "shard": shard}
        settings["sampling"] = Sampling(given.every, given.fps, given.seconds)
        if given.live or given.osc is not None:  # frames as they come, not in batches
            settings["batch_size"] = 1
        settings["progress"] = not given.quiet and sys.stderr.isatty()
        if given.yes and detector is None and not given.aligned and given.landmarks in (None, "mediapipe"):
            from mf2face.inference.setup import setup_mediapipe

            setup_mediapipe()
        analysis = prepare(inputs, model or given.model, **settings)
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
        _say(f"landmarks: {_SOURCES.get(source, source)}")
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
    except OutputError as error:
        return _end(given, analysis, _fail(4, error))
    except BrokenPipeError:
        raise
    except OSError as error:  # a camera that is not there
        if not analysis.summary.frames:
            analysis.summary.stopped = None  # it is said once
        return _end(given, analysis, _fail(2 if not analysis.summary.frames else 1, error))
    except KeyboardInterrupt as stop:
        alone = all(isinstance(one, int) for one in analysis.inputs) and not isinstance(stop, _Terminated)
        if alone:
            analysis.summary.stopped = None
        return _end(given, analysis, _finish(given, why) if alone else _stopped(stop))
    summary = analysis.summary
    nothing = not summary.frames and not summary.resumed and analysis.files != []  # a shard may have no input
    code = 0 if nothing else _finish(given, why)
    return _end(given, analysis, code or (3 if nothing else 1 if summary.left_out else 0))


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
            draw = FrameView(analysis.columns, analysis.thresholds, about).draw
            views.append(stack.enter_context(LiveView(draw, about, _open_page)))
        if given.osc is not None:
            views.append(stack.enter_context(BlendshapeStream(given.osc, analysis.summary.skip)))
        analysis.on_frame = lambda frame, rows: [view.add(frame, rows) for view in views]
        yield


def _open_page(address: str) -> None:
    import webbrowser

    _say(f"live: {address}")
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


class _AroundBar:
    """Rows on the same screen as the progress bar: it steps aside for them."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.close = sink, sink.close

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        from tqdm.auto import tqdm

        with tqdm.external_write_mode(file=sys.stdout):
            self.sink.add(rows)


def _beside_bar(analysis: Any, sink: Any) -> Any:
    return _AroundBar(sink) if analysis.progress else sink


def _screen(analysis: Any, format: str) -> Any:
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text: none stops the run
        sys.stdout.reconfigure(errors="backslashreplace" if format == "table" else "surrogateescape")
    if format != "table":
        return _beside_bar(analysis, _Lines(sys.stdout, format, analysis.columns.names))
    from mf2face.inference.media import is_video
    from mf2face.inference.table import FaceTable

    alone = analysis.inputs[0] if len(analysis.inputs) == 1 else 0
    detailed = isinstance(alone, str) and Path(alone).is_file() and not is_video(alone)
    return _beside_bar(analysis, FaceTable(sys.stdout, analysis.columns, analysis.thresholds, detailed=detailed))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(code: int, error: BaseException) -> int:
    _say(f"mf2: {error}")
    return code


def _end(given: argparse.Namespace, analysis: Any, code: int) -> int:
    if not given.quiet:
        _say(analysis.summary.text(given.output))
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
