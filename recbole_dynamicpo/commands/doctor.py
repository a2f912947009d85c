"""``recbole-dynamicpo doctor``: what was found on this machine, and a remedy for what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from .arguments import add_command

# Bytes that the default job needs: on disk, and in memory.
DISK, MEMORY = 2 * 10**9, 6 * 10**9
# Seconds that a server has to answer.
PATIENCE = 3.0
_BESIDE_RECBOLE = "pip install --no-deps recbole==1.2.1"


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and what to do about it; nothing where all is well."""

    what: str
    found: str
    remedy: str = ""


def add(commands: Any) -> None:
    """Add the subcommand."""
    text = "say what was found on this machine, and what to do about what is missing"
    add_command(commands, "doctor", _run, text)


def _run(options: argparse.Namespace) -> None:
    from ..errors import DynamicPOError

    findings = list(diagnose())
    for what, found, remedy in findings:
        print(f"{'!' if remedy else ' '} {what:10} {found}" + (f"; {remedy}" if remedy else ""))
    wrong = sum(bool(finding.remedy) for finding in findings)
    if wrong:
        raise DynamicPOError(f"{wrong} of {len(findings)} findings want something done, those marked with !")


def diagnose() -> Iterator[Finding]:
    """Yield what was found."""
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", platform.python_version(), "" if fits else "wanted 3.11, 3.12 or 3.13")
    for name in ("recbole", "transformers", "peft", "mlflow", "prefect"):
        yield _package(name, _BESIDE_RECBOLE if name == "recbole" else f"pip install {name}")
    yield from _torch()
    yield from _servers()
    yield from _room()


def _package(name: str, remedy: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", remedy)


def _torch() -> Iterator[Finding]:
    from ..language_model.backbone import resolve_dtype
    from ..tracking.system import compute_device

    device, name = compute_device()
    yield Finding("torch", f"{version('torch')} on {device}, {name}")
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    why = {"cuda": "as always on CUDA", "cpu": "as always on a CPU, so that one command gives one result"}
    yield Finding("dtype", f"auto is {dtype} here, {why[device.type]}")


def _servers() -> Iterator[Finding]:
    from ..serving.mlflow_uri import resolve_uri

    uri = resolve_uri("auto") or ""
    if uri.startswith("http"):
        remedy = "start it, or unset MLFLOW_TRACKING_URI; runs go on without it, and sync sends them later"
        yield _asked("MLflow", uri, f"{uri.rstrip('/')}/health", remedy)
    else:
        yield Finding("MLflow", f"records into {uri}")
    api = os.environ.get("PREFECT_API_URL")
    if api:
        yield _asked("Prefect", api, f"{api.rstrip('/')}/health", "prefect server start --background")
    else:
        yield Finding("Prefect", "no PREFECT_API_URL is set: only deployments need one")


def _asked(what: str, name: str, address: str, remedy: str) -> Finding:
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return Finding(what, f"{name} answers ({answer.status})")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding(what, f"{name} does not answer ({getattr(error, 'reason', error)})", remedy)


def _room() -> Iterator[Finding]:
    from ..language_model.embedded import cache_folder
    from ..serving.packaging import folder_size
    from ..tracking.system import free_memory

    cache = cache_folder()
    held = folder_size(cache) if cache.is_dir() else 0
    yield Finding("cache", f"{cache}, {held / 1e9:.1f} GB (RECBOLE_DYNAMICPO_CACHE names another folder)")
    spaces: tuple[tuple[str, Callable[[], int], int, str], ...] = (
        ("disk", lambda: shutil.disk_usage(Path.cwd()).free, DISK, "make room, or work in another folder"),
        ("memory", free_memory, MEMORY, "close something, or set max_memory"),
    )
    for what, ask, wanted, remedy in spaces:
        free = ask()
        found = f"{free / 1e9:.1f} GB free, the default job wants {wanted / 1e9:.1f}"
        yield Finding(what, found, "" if free >= wanted else remedy)
