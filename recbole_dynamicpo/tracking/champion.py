"""Who becomes champion: a model that ranks as it should, better than popularity, and than the champion before.

Better means a higher MRR on the very same validation rows, and a paired bootstrap that shows it (p < 0.05).
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.ranks import POPULARITY, VALID_RANKS_FILE, Ranks, read_ranks
from ..evaluation.statistics import Gain, mrr_gain, paired_ranks
from ..serving import gate
from ..serving.folder import read_card
from ..serving.mlflow_uri import lock_place
from ..storage import load_json, locked
from .client import LOCK_WITHIN
from .record import PROBE_FILE, Record

logger = logging.getLogger(__name__)

CHAMPION = "champion"
# Tags of a version: the verdict, and why.
GATE, REASON = "gate", "gate_reason"
DATA = "data_digest"
# Validation rows below which a bootstrap is too sure of itself.
ENOUGH_ROWS = 50


def judge(client: Any, uri: str, version: Any, folder: Path, record: Record, recommender: Path) -> None:
    """Say in a version's tags what was found, and make it ``champion`` if nothing speaks against it.

    Args:
        client: of MLflow.
        uri: of the store.
        version: of the registered model.
        folder: of the run.
        record: of the run.
        recommender: its folder.
    """
    name, number = version.name, version.version
    backbone, probe = read_card(recommender).backbone, load_json(folder / PROBE_FILE)
    verdict = gate.ask(recommender, f"models:/{name}/{number}", uri, probe, backbone)
    tags = {
        "gate_largest_difference": repr(verdict.largest_difference),
        "gate_dtype": verdict.dtype,
        "gate_device": verdict.device,
    }
    ranks = valid_ranks(folder, record)
    gain = over_popularity(ranks)
    if gain is not None:
        tags |= {"valid_mrr": repr(gain.mrr), "valid_mrr_popularity": repr(gain.other)}
        tags["valid_p_value"] = repr(gain.p_value)
    reasons = [*verdict.reasons, *against(gain)]
    if not reasons and ranks is not None:
        improve = bool(record.params.get("require_improvement", True))
        reasons = promote(client, uri, version, ranks, improve=improve)
    tags[REASON] = "; ".join(reasons) or _said(gain, POPULARITY)
    # Last, because a version with it is not judged again.
    tags[GATE] = "failed" if reasons else "passed"
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    state = "stays candidate" if reasons else "is champion"
    logger.info("models:/%s/%s %s: %s", name, number, state, tags[REASON])


def valid_ranks(folder: Path, record: Record) -> Ranks | None:
    """Return the ranks that a run left of its validation rows; None if it left none.

    Raises:
        DataError: they are damaged.
    """
    path = record.stage_folder(folder, "evaluate") / VALID_RANKS_FILE
    return read_ranks(path) if path.is_file() else None


def over_popularity(ranks: Ranks | None) -> Gain | None:
    """Return what a model's ranks have over those of popularity; None where that cannot be told."""
    if ranks is None or POPULARITY not in ranks.others or len(ranks.ranks) < ENOUGH_ROWS:
        return None
    return mrr_gain(ranks.ranks, ranks.others[POPULARITY])


def against(gain: Gain | None) -> list[str]:
    """Return what speaks against a model that has ``gain`` over popularity; empty if nothing does."""
    if gain is None:
        return [
            f"no ranks of at least {ENOUGH_ROWS} validation rows to compare with those of {POPULARITY} "
            "(setting valid_rows)"
        ]
    return [] if gain.proven else [f"ranks no better than {POPULARITY}: {_said(gain, POPULARITY)}"]


def _said(gain: Gain | None, other: str) -> str:
    assert gain is not None
    return (
        f"MRR {gain.mrr:.4f} against {gain.other:.4f} of {other} on {gain.n} validation rows, "
        f"p = {gain.p_value:.2g}"
    )


def promote(client: Any, uri: str, version: Any, ranks: Ranks, *, improve: bool) -> list[str]:
    """Make a version champion if it is better than the present one; return what speaks against it.

    Of the processes of one machine one at a time does this. No store can be locked against another machine:
    the champion is looked up again right before and right after the alias is set.

    Args:
        client: of MLflow.
        uri: of the store.
        version: of the registered model.
        ranks: of its validation rows.
        improve: compare it with the present champion.
    """
    name, number = version.name, str(version.version)
    with locked(lock_place(uri, f"{name}.{CHAMPION}"), wait=True, within=LOCK_WITHIN):
        before = champion_of(client, name)
        while improve and before is not None and str(before.version) != number:
            reasons = no_better_than(client, version, ranks, before)
            if reasons:
                return reasons
            now = champion_of(client, name)
            if now is None or now.version == before.version:
                break
            before = now
        client.set_registered_model_alias(name, CHAMPION, number)
        now = champion_of(client, name)
        if now is None or str(now.version) != number:
            return ["another process has set the alias at the same time"]
    return []


def champion_of(client: Any, name: str) -> Any:
    """Return the version that bears the alias ``champion``, or None."""
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, number) if number else None


def no_better_than(client: Any, version: Any, ranks: Ranks, champion: Any) -> list[str]:
    """Return why a version is not known to be better than the champion; empty if it is."""
    named = f"the champion, version {champion.version}"
    if version.tags.get(DATA) != champion.tags.get(DATA):
        return [f"not comparable with {named}, which was validated on other data"]
    theirs = _ranks_of_run(client, champion.run_id)
    if theirs is None:
        return [f"not comparable with {named}, which left no ranks of validation rows"]
    try:
        gain = mrr_gain(*paired_ranks(ranks, theirs, "the model", named))
    except DataError as error:
        return [f"not comparable with {named} ({error})"]
    return [] if gain.proven else [f"not better than {named}: {_said(gain, 'it')}"]


def _ranks_of_run(client: Any, run_id: str) -> Ranks | None:
    """Return the ranks of validation rows that were kept with a run; None if there are none."""
    if VALID_RANKS_FILE not in {file.path for file in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        return read_ranks(Path(client.download_artifacts(run_id, VALID_RANKS_FILE, work)))
