"""A small service for one machine: an image in, named action units and emotions out, as JSON; nothing is kept.

python examples/deploy.py [--check: asks itself once] [--model NAME] [--adapter NAME] [--engine int8] [--port 8765]
1. `load_model` takes a checkpoint or an adapter, in torch, or exported (onnx, int8) where `mf2[export]` is installed.
2. POST /analyse takes {"image": base64 of a PNG or JPEG, "landmarks": 68 pairs or nothing: an aligned face}.
3. What is too large, no image or no JSON is refused before it is decoded; one question is answered at a time.
4. It listens on 127.0.0.1 alone. Faces are personal data: put encryption and sign-in before it, or leave it there.
"""

import argparse
import base64
import io
import json
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

from PIL import Image

from mf2face import load_model
from mf2face.command_line import run_as_command
from mf2face.data.synthetic.faces import draw_example


ENGINE, MOST_BYTES, MOST_PIXELS = "onnx" if find_spec("onnxscript") else "torch", 8 * 2**20, 16_000_000


class Service(BaseHTTPRequestHandler):
    analysis, one_at_a_time, timeout = None, threading.Lock(), 20  # seconds that a slow sender has

    def log_message(self, *_: object) -> None: ...  # requests are not logged
    def do_POST(self) -> None:
        if (self.path, self.headers.get_content_type()) != ("/analyse", "application/json"):
            return self.answer(404, error="expected POST /analyse with Content-Type application/json")
        try:
            if not 0 <= (length := int(self.headers.get("Content-Length", -1))) <= MOST_BYTES:
                return self.answer(413, error=f"Content-Length: got {length}, expected at most {MOST_BYTES} bytes")
            question = json.loads(self.rfile.read(length))
            image = Image.open(io.BytesIO(base64.b64decode(question["image"], validate=True)), formats=("PNG", "JPEG"))
            if image.width * image.height > MOST_PIXELS:  # nothing but the file's head has been read so far
                raise ValueError(f"image: got {image.size}, expected at most {MOST_PIXELS} pixels")
            with self.one_at_a_time:
                face = {"image": image.convert("RGB"), "landmarks": question.get("landmarks")}
                found = self.analysis.pipeline(face, landmark_source="template")[0]
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
            return self.answer(400, error=f"{type(error).__name__}: {error}")
        return self.answer(200, **found, model=self.analysis.name, about=self.analysis.trained_on)

    def answer(self, status: int, **content: object) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content, default=lambda value: value.tolist()).encode())


def main(argv: list[str] | None = None) -> dict | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    for name, usual in {"--model": None, "--adapter": None, "--engine": ENGINE, "--port": 8765}.items():
        parser.add_argument(name, default=usual, type=type(usual or ""))
    given = parser.parse_args(argv)
    Service.analysis = load_model(given.model, given.adapter, engine=given.engine)
    with ThreadingHTTPServer(("127.0.0.1", 0 if given.check else given.port), Service) as server:
        print(f"{Service.analysis.name} by {given.engine} answers at {server.server_address}", flush=True)
        if not given.check:
            return server.serve_forever()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pixels, landmarks = draw_example(7, size=224)
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        face = {"image": base64.b64encode(file.getvalue()).decode(), "landmarks": landmarks.tolist()}
        line = HTTPConnection(*server.server_address)
        line.request("POST", "/analyse", json.dumps(face), {"Content-Type": "application/json"})
        print(json.dumps(found := json.load(line.getresponse()), indent=1))
        server.shutdown()
    return found


if __name__ == "__main__":
    run_as_command(main)
