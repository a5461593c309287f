"""The web page: a face in, its action units, emotion, sentence and heat maps out; adapters are swapped while it runs.

python examples/demo/app.py [--model FOLDER_OR_NAME ...] [--adapters FOLDER ...] [--port 7860]
"""

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise SystemExit('the web page needs gradio, which is not installed: pip install -e ".[demo]"') from error

import demo_view as view
from demo_engine import EXAMPLES, Engine, Picture, example
from demo_limits import Guard, Limits, RateLimit, Refused, decode, read_picture
from starlette.middleware import Middleware

from mf2face.inference.explain.page import banner


NONE = "none"
logger = logging.getLogger("mf2.demo")


class Page:
    """Handlers of events. Nothing is kept: the browser sends the picture each time."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.limits, self.rate = engine, engine.limits, RateLimit()

    def one(self, sent: Any, model: str, adapter: str | None, aligned: bool, words: bool, request: gr.Request) -> Any:
        """(banner, answer)"""
        try:
            self._count(request, 1)
            look = self.engine.look(self._picture(sent), model, _chosen(adapter), aligned=aligned, words=words)
            return banner(look.faces[0].about), view.answer(look)
        except Exception as error:
            return gr.skip(), view.problem(_message(error))

    def many(self, sent: Any, model: str, adapter: str | None, aligned: bool, request: gr.Request) -> Iterator[Any]:
        """(banner, table) and before them how many are done."""
        left_out: list[tuple[str, str]] = []
        try:
            items = [{"example": name} for name in EXAMPLES] if sent.get("examples") else list(sent["files"])
            if len(items) > self.limits.pictures:
                raise Refused(f"At most {self.limits.pictures} pictures at once; these are {len(items)}.")
            self._count(request, len(items))
            columns: list[str] = []
            rows: list[dict[str, Any]] = []
            for done, item in enumerate(items):
                yield gr.skip(), view.working(done, len(items))
                try:
                    columns, found = self.engine.rows(self._picture(item), model, _chosen(adapter), aligned=aligned)
                    rows += found
                except Exception as error:
                    left_out.append((_name(item), _message(error)))
            with self.engine.using(model, _chosen(adapter)) as ready:
                about = ready.about
            yield banner(about), view.table(columns, rows, left_out)
        except Exception as error:
            yield gr.skip(), view.problem(_message(error))

    def adapters(self, model: str) -> Any:
        return gr.Radio(choices=[NONE, *self.engine.adapters_of(model)], value=NONE)

    def _count(self, request: gr.Request, cost: int) -> None:
        address = request.client.host if request.client else ""
        allowed = {f"session {request.session_hash}": self.limits.per_session}
        self.rate.take({**allowed, f"address {address}": self.limits.per_address}, cost)

    def _picture(self, sent: Any) -> Picture:
        if isinstance(sent, dict) and isinstance(sent.get("example"), str):
            return example(sent["example"])
        if not isinstance(sent, dict):
            raise Refused("Choose a picture first.")
        if isinstance(sent.get("bytes"), int) and sent["bytes"] > self.limits.mebibytes * 2**20:
            raise Refused(f"The file is larger than {self.limits.mebibytes:g} MB. Choose a smaller picture.")
        return Picture(_name(sent), read_picture(decode(sent.get("data"), self.limits), self.limits))


def _chosen(adapter: str | None) -> str | None:
    return None if adapter in (None, NONE) else adapter


def _name(sent: Any) -> str:
    """Without folders."""
    name = str(sent.get("name") or sent.get("example") or "picture") if isinstance(sent, dict) else "picture"
    return name.replace("\\", "/").rpartition("/")[2][:120] or "picture"


def _message(error: Exception) -> str:
    if isinstance(error, Refused):
        return str(error)
    logger.error("an answer failed", exc_info=error)
    return "The server failed and has logged why. Another picture may work."


def build_app(engine: Engine) -> gr.Blocks:
    page, models = Page(engine), list(engine.models)
    settings = {"show_progress": "minimal", "trigger_mode": "always_last", "api_visibility": "private"}
    settings |= {"concurrency_id": "pictures", "concurrency_limit": engine.limits.at_once}  # of all events together
    plain = {"padding": False, "apply_default_css": False}
    with gr.Blocks(title="MF² · reads a face", analytics_enabled=False, fill_width=True) as app:
        gr.HTML(view.header(), **plain)
        top = gr.HTML("", elem_id="about", **plain)
        with gr.Row():
            model = gr.Dropdown(models, value=models[0], label="Model", scale=2, visible=len(models) > 1)
            choices = [NONE, *engine.adapters_of(models[0])]
            adapter = gr.Radio(choices, value=NONE, label="Adapter, swapped live", visible=bool(engine.adapters))
        with gr.Tabs():
            with gr.Tab("One face"), gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=290, elem_classes=["mf-card", "mf-side"]):
                    first = {"example": next(iter(EXAMPLES))}
                    sent = gr.HTML(
                        first, html_template=view.source(page.limits), js_on_load=view.SOURCE_JS, elem_id="one", **plain
                    )
                    aligned = gr.Checkbox(engine.finder is None, label="The picture is one face that fills it")
                    words = gr.Checkbox(True, label="Let the model write about it")
                with gr.Column(scale=8, min_width=320, elem_classes="mf-card"):
                    result = gr.HTML("", js_on_load=view.RESULT_JS, elem_id="result", min_height=420, **plain)
            with gr.Tab("Many pictures"), gr.Column(elem_classes="mf-card"):
                files = gr.HTML(
                    html_template=view.source(page.limits, many=True),
                    js_on_load=view.SOURCE_JS,
                    elem_id="many",
                    **plain,
                )
                all_aligned = gr.Checkbox(engine.finder is None, label="Each picture is one face that fills it")
                rows = gr.HTML("", js_on_load=None, elem_id="rows", **plain)
        ask = {"fn": page.one, "inputs": [sent, model, adapter, aligned, words], "outputs": [top, result], **settings}
        gr.on([app.load, sent.submit, adapter.input, aligned.input, words.input], **ask)
        model.input(page.adapters, model, adapter, api_visibility="private").then(**ask)
        files.submit(page.many, [files, model, adapter, all_aligned], [top, rows], **settings)
    return app.queue(max_size=engine.limits.waiting)


def launch_settings(limits: Limits) -> dict[str, Any]:
    """No network, no files, no record, neither on the server nor in the browser."""
    font = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="lg", font=font, font_mono=["monospace"]
    )
    guard = Middleware(Guard, most_bytes=limits.body)
    return {
        **{
            "theme": theme,
            "css": view.CSS,
            "head": view.HEAD,
            "footer_links": [],
            "run_history": False,
            "enable_monitoring": False,
        },
        **{"share": False, "pwa": False, "ssr_mode": False, "mcp_server": False, "max_file_size": 1},
        **{"app_kwargs": {"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None}},
        "state_session_capacity": 100,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], help="folders or names on the Hub; else the embedded one")
    parser.add_argument("--adapters", nargs="+", default=[], help="folders of adapters, or folders that hold some")
    parser.add_argument("--device", help="cpu, cuda, ...; found by itself")
    parser.add_argument("--host", help="127.0.0.1 unless given (a Space sets GRADIO_SERVER_NAME itself)")
    parser.add_argument("--port", type=int, help="the first free one from 7860 unless given")
    given = parser.parse_args(argv)
    beside = Path(__file__).parent / "adapters"  # as in a Space
    adapters = given.adapters or [beside] * beside.is_dir()
    engine = Engine(given.model, adapters, device=given.device)
    app = build_app(engine)
    app.launch(server_name=given.host, server_port=given.port, **launch_settings(engine.limits))


if __name__ == "__main__":
    main()
