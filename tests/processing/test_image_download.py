"""A download ends in time, with the image or with a sentence, and no redirect leads it into the caller's network."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from processing_mf2 import image_io as image_download_mf2
from processing_mf2.image_io import _is_private, download


class _Pages(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        where = {
            "/here": f"http://127.0.0.1:{port}/image",
            "/named": f"http://localhost:{port}/image",
            "/file": "file:///etc/hostname",
            "/ftp": "ftp://127.0.0.1/image",
        }.get(self.path)
        if self.path == "/broken":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"few")
        elif self.path == "/no_http":
            self.wfile.write(b"\x00\x01 nothing of HTTP\n\n")
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b".")
                time.sleep(0.1)
        elif where:
            self.send_response(302)
            self.send_header("Location", where)
            self.end_headers()
        elif self.path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"content")
        else:
            self.send_error(404)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_an_address_of_the_own_network_may_be_given_and_may_redirect_within_it(address: str) -> None:
    for page in ("/image", "/here", "/named"):
        assert download(address + page, "images") == b"content"


@pytest.mark.parametrize("page", ["/file", "/ftp", "/broken", "/no_http", "/missing"])
def test_what_goes_wrong_is_one_kind_of_error(address: str, page: str) -> None:
    with pytest.raises(ValueError, match=r"images\[2\]: 'http://127.* could not be fetched"):
        download(address + page, "images[2]")


def test_a_public_address_may_not_redirect_into_the_own_network(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_download_mf2, "_is_private", lambda host: host == "localhost")  # the server is public now
    assert download(f"{address}/here", "images") == b"content"
    with pytest.raises(ValueError, match="redirects to the private address"):
        download(f"{address}/named", "images")


def test_the_time_is_limited_in_all(address: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"longer than 0\.5 s"):
        download(f"{address}/slow", "images", timeout=0.5)
    assert time.monotonic() - start < 3
    with pytest.raises(ValueError, match="timeout: got -1"):
        download(f"{address}/image", "images", timeout=-1)


def test_the_size_is_limited(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_download_mf2, "MOST_DOWNLOADED", 3)
    with pytest.raises(ValueError, match="larger than"):
        download(f"{address}/image", "images")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "::1", "::ffff:127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0"],
)
def test_private_hosts_are_known(host: str) -> None:
    assert _is_private(host) and not _is_private("8.8.8.8")
