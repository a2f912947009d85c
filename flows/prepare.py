"""The stage prepare alone: data files, their audit, the backbone.

python -c "from recbole_dynamicpo.flows.prepare import prepare; prepare(dataset='lastfm')"
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from . import tasks
from .parameters import takes_job


@flow(name="prepare", **tasks.FLOW)
@takes_job
def prepare(job: Any) -> dict[str, Any]:
    """Make data and backbone ready, and say what they are."""
    return asdict(tasks.start(job))
