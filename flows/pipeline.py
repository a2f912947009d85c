"""The whole pipeline: prepare, SFT, DynamicPO, evaluation, one after the other.

prefect deployment run 'dynamicpo/ml-100k' --param sft_rows=64
python -c "from recbole_dynamicpo.flows.pipeline import dynamicpo; dynamicpo(sft_rows=64)"
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from . import tasks
from .parameters import takes_job


@flow(name="dynamicpo", **tasks.FLOW)
@takes_job
def dynamicpo(job: Any) -> dict[str, Any]:
    """Run all four stages and register the adapter; what is done already is not done again."""
    prepared = tasks.start(job)
    with tasks.recorded(job, prepared) as run:
        tasks.result_of(tasks.sft_task, run)
        tasks.result_of(tasks.preference_task, run)
        result = tasks.result_of(tasks.evaluate_task, run)
    registered = tasks.register_task(run)
    return {**result, **registered, "run_folder": str(run.folder)}
