"""A proxy of Prefect's server that answers chosen requests with errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_OWN = {"host", "connection", "content-length", "transfer-encoding", "content-encoding", "accept-encoding"}


@contextmanager
def faulty_proxy(port: int, faults: Mapping[str, int]) -> Iterator[int]:
    """Pass requests on to a port of this machine; yields the port to ask instead.

    Args:
        port: of the server.
        faults: part of a path -> status that is answered there.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = next((faults[part] for part in faults if part in self.path), None)
            if status is not None:
                return self.reply(status, b"{}", {"Content-Type": "application/json"})
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            address = f"http://127.0.0.1:{port}{self.path}"
            found = httpx.request(self.command, address, content=body, headers=kept, timeout=60)
            self.reply(found.status_code, found.content, found.headers)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815

        def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
