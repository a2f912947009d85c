"""The DynamicPO stage, after those before it that have not run yet.

python -c "from recbole_dynamicpo.flows.preference import preference; preference(num_negatives=5)"
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from . import tasks
from .parameters import takes_job


@flow(name="preference", **tasks.FLOW)
@takes_job
def preference(job: Any) -> dict[str, Any]:
    """Train the DynamicPO adapter, or that of a plain objective, on an SFT adapter."""
    with tasks.recorded(job, tasks.start(job)) as run:
        tasks.result_of(tasks.sft_task, run)
        result = tasks.result_of(tasks.preference_task, run)
    return result
