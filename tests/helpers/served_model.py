"""A real `mlflow models serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_dynamicpo.serving.folder import BACKBONE_VARIABLE

from .mlflow_world import Store

START_SECONDS = 120.0


@contextmanager
def served(store: Store, model: str, python: str = sys.executable) -> Iterator[str]:
    """Serve a model inside the block, at the address that is yielded.

    Args:
        store: that it lies in.
        model: its URI or folder.
        python: of the environment that serves; another than ours finds no code of ours on its path.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    tools = Path(python).parent  # `mlflow` starts `uvicorn` by its bare name
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}",
        "MLFLOW_TRACKING_URI": store.uri,
        BACKBONE_VARIABLE: str(store.backbone),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = store.folder.parent / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, cwd=store.folder.parent, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(address, process, log)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"not ready after {START_SECONDS} s:\n{log.read_text()}")


def post(server: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Send a body as JSON and return the status and the answer."""
    request = urllib.request.Request(
        f"{server}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
