"""What the flows need of Prefect and MLflow, made where it is not there, and checks before anything long.

recbole-dynamicpo bootstrap            # again at any time: what is there stays as it is
recbole-dynamicpo bootstrap --deploy   # and deploy, where there is no checkout with a prefect.yaml
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from recbole_dynamicpo.errors import DynamicPOError

from .parameters import STORE_VARIABLE, store
from .tasks import GPU

POOL = "dynamicpo"
TAG = "recbole-dynamicpo"  # of our deployments
AUTOMATION = "recbole-dynamicpo: runs that died"
# Three heartbeats, which prefect.yaml asks for every 30 s.
SILENCE = timedelta(seconds=90)
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")

LEASES = "prefect.server.concurrency.lease_storage"
FORGETS_LEASES = (
    "warning: Prefect's server keeps in memory who holds a place of a limit; if it dies while a run trains, "
    "that place is never free again. Before it is started: "
    f"prefect config set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE={LEASES}.filesystem"
)

_ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Paused", "Suspended", "AwaitingRetry")
_IMPORTED = ("torch", "transformers", "peft", "recbole.config", "mlflow", "recbole_dynamicpo.pipeline")
_FLOWS = ("prepare", "sft", "preference", "evaluate", "pipeline", "study")


class BootstrapError(DynamicPOError):
    """Something that the flows need is not there; the message says how to get it."""


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        gpu_runs: training tasks that may run at the same time.
        free_gb: disk space that a run needs, gigabytes of 2**30 bytes.
        deploy: deploy the shipped ``prefect.yaml`` from the present folder.
    """

    gpu_runs: int = 1
    free_gb: float = 2.0
    deploy: bool = False


def bootstrap(options: Options, say: Callable[[str], object] = print) -> None:
    """Check, make what is missing, and say so, a line each.

    Raises:
        BootstrapError: a check failed; nothing has been made then.
    """
    if options.gpu_runs < 1:
        raise BootstrapError(f"--gpu-runs: got {options.gpu_runs}, wanted at least 1")
    for line in _checks(options):
        say(line)
    for line in _make(options):
        say(line)
    if options.deploy:
        _deploy()
    how = "" if options.deploy else "prefect --no-prompt deploy --all, then "
    say(f"next: {how}prefect worker start --pool {POOL}")


def _checks(options: Options) -> Iterator[str]:
    yield f"package and libraries: version {_check_imports()}"
    yield f"Prefect's server: {_check_server()}"
    yield f"disk: {_check_disk(options.free_gb)}"


def _check_imports() -> str:
    """Import everything that a run imports, and return the package's version."""
    flows = __package__
    for name in [*_IMPORTED, *(f"{flows}.{flow}" for flow in _FLOWS)]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise BootstrapError(
                f"{name} cannot be imported ({error}); install recbole-dynamicpo again"
            ) from error
    from recbole_dynamicpo import __version__

    return __version__


def _check_server() -> str:
    """Return the address of a server that answers."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    address = PREFECT_API_URL.value()
    how = "start one with `prefect server start` and tell where: `prefect config set PREFECT_API_URL=...`"
    if not address:
        raise BootstrapError(f"PREFECT_API_URL: got none, wanted the address of a Prefect server; {how}")
    with get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
    if trouble is not None:
        raise BootstrapError(f"PREFECT_API_URL: nothing healthy answers at {address} ({trouble!r}); {how}")
    return str(address)


def _check_disk(wanted: float) -> str:
    folder, other = store(), f"{STORE_VARIABLE} names another folder for results"
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    if not os.access(there, os.W_OK):
        raise BootstrapError(f"{there}: cannot be written; {other}")
    free = shutil.disk_usage(there).free / 2**30
    if free < wanted:
        raise BootstrapError(f"{there}: {free:.1f} GB free, wanted {wanted:.1f}; {other}")
    return f"{free:.0f} GB free for {folder}"


def _make(options: Options) -> Iterator[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield f"work pool '{POOL}': {_make_pool(client)}"
        yield f"concurrency limit '{GPU}': {_make_limit(client, options.gpu_runs)}"
        if _forgets_leases(client):
            yield FORGETS_LEASES
    yield f"automation '{AUTOMATION}': {_make_automation()}"
    yield f"MLflow: {_make_database()}"


def _make_pool(client: Any) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        kind = client.read_work_pool(POOL).type
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        return "made"
    if kind != "process":
        raise BootstrapError(f"work pool '{POOL}': it is there with type {kind}, wanted process")
    return "there"


def _make_limit(client: Any, runs: int) -> str:
    from prefect.client.schemas.actions import (
        GlobalConcurrencyLimitCreate,
        GlobalConcurrencyLimitUpdate,
    )
    from prefect.exceptions import ObjectNotFound

    name = f"tag:{GPU}"  # how Prefect calls the limit of a tag
    try:
        limit = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=runs))
        return f"made, {runs} at a time"
    if limit.limit != runs:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=runs))
        return f"changed from {limit.limit} to {runs} at a time"
    return f"there, {runs} at a time"


def _forgets_leases(client: Any) -> bool:
    """Say whether places of limits stay taken for ever when the server dies; false where it does not tell."""
    from httpx import HTTPError

    try:
        settings = client.request("GET", "/admin/settings").json()
        return bool(settings["server"]["concurrency"]["lease_storage"] == f"{LEASES}.memory")
    except (HTTPError, ValueError, KeyError, TypeError):  # such as Prefect Cloud, which has no such page
        return False


def _make_automation() -> str:
    """Let runs whose process died be called crashed, so that they can be retried.

    Nobody tells the server of a process that is killed together with its worker; its heartbeats stop.
    """
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.states import StateType

    try:
        Automation.read(name=AUTOMATION)  # type: ignore[unused-coroutine]
        return "there"
    except ValueError:
        pass
    heartbeat = "prefect.flow-run.heartbeat"
    trigger = EventTrigger(
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{state}" for state in _ENDED)},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        match_related={"prefect.resource.id": [f"prefect.tag.{TAG}"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=SILENCE,
    )
    message = f"No heartbeat for {SILENCE.total_seconds():.0f} s; retry the run to go on from its checkpoint."
    action = ChangeFlowRunState(name=None, force=False, state=StateType.CRASHED, message=message)
    Automation(name=AUTOMATION, trigger=trigger, actions=[action]).create()
    return f"made: crashed after {SILENCE.total_seconds():.0f} s of silence"


def _make_database() -> str:
    """Open MLflow's store, which makes the tables of a new local database."""
    from recbole_dynamicpo.serving.mlflow_uri import resolve_uri, without_password
    from recbole_dynamicpo.tracking.client import connect

    uri = resolve_uri("auto")
    assert uri is not None
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:  # of the network, of MLflow, of a database
        raise BootstrapError(f"MLflow at {without_password(uri)} does not answer ({error})") from error
    return without_password(uri)


def _deploy() -> None:
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--all",
        "--prefect-file",
        str(DEPLOYMENTS),
    ]
    if subprocess.run(command).returncode:
        raise BootstrapError("prefect deploy failed; its message is above")
