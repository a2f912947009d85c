"""The stage evaluate, after those before it that have not run yet; registers nothing.

python -c "from recbole_dynamicpo.flows.evaluate import evaluate; evaluate(eval_rows=0)"
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from . import tasks
from .parameters import takes_job


@flow(name="evaluate", **tasks.FLOW)
@takes_job
def evaluate(job: Any) -> dict[str, Any]:
    """Rank the test rows with the final adapter, and with what it is compared with."""
    with tasks.recorded(job, tasks.start(job)) as run:
        tasks.result_of(tasks.sft_task, run)
        tasks.result_of(tasks.preference_task, run)
        result = tasks.result_of(tasks.evaluate_task, run)
    return result
