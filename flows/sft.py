"""The stage sft, after prepare if that has not run yet.

python -c "from recbole_dynamicpo.flows.sft import sft; sft(sft_rows=64)"
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from . import tasks
from .parameters import takes_job


@flow(name="sft", **tasks.FLOW)
@takes_job
def sft(job: Any) -> dict[str, Any]:
    """Train the SFT adapter."""
    with tasks.recorded(job, tasks.start(job)) as run:
        result = tasks.result_of(tasks.sft_task, run)
    return result
