"""Remote files for tests: a web site on this machine, and a bucket in memory."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Mapping

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry


class Site:
    """A web site on this machine. A file whose name begins with "cut" lacks its last seven bytes.

    Attributes:
      files: {path: content}.
      asked: the paths of all requests.
      url: where it is.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked = dict(files), []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                content = site.files.get(self.path)
                self.send_response(404 if content is None else 200)
                missing = 7 if self.path.startswith("/cut") else 0
                self.send_header("Content-Length", str(len(content or b"") + missing))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def fill_bucket(monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes]) -> None:
    """Replaces Google Cloud Storage by a memory that holds `files`, {gs:// URL: content}."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setitem(_registry, "gs", MemoryFileSystem)
    for url, content in files.items():
        with fsspec.open(url, "wb") as file:
            file.write(content)
