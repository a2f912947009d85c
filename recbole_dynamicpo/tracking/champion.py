"""Who becomes champion: a model that ranks as it should, better than popularity, no worse than counting.

No worse than the present champion either.

A paired bootstrap of MRR on the model's validation rows settles both, one-sided, p < 0.05: the gain over
popularity has to be proven, a loss against the present champion must not be.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.ranks import COUNTING, POPULARITY, Ranks, read_ranks, valid_ranks_file
from ..evaluation.statistics import Gain, mrr_gain, paired_ranks
from ..serving import gate
from ..serving.folder import read_card
from ..serving.mlflow_uri import lock_place
from ..storage import load_json, locked
from .client import LOCK_WITHIN
from .record import PROBE_FILE, Record

CHAMPION = "champion"
# Tags of a version: the verdict, why, and what finds and describes its validation rows.
GATE, REASON, STAGE, SEED, DATA = "gate", "gate_reason", "stage", "seed", "data_digest"
# Users with validation rows below which a bootstrap is too sure of itself.
ENOUGH_USERS = 50
_WAIVED = "--require_improvement=False waives the comparison"


def judge(client: Any, uri: str, version: Any, folder: Path, record: Record, recommender: Path) -> None:
    """Say in a version's tags what was found, and make it ``champion`` if nothing speaks against it.

    Args:
        client: of MLflow.
        uri: of the store.
        version: of the registered model.
        folder: of the run.
        record: of the run.
        recommender: its folder.

    Raises:
        DataError: the ranks that the run left are damaged.
    """
    name, number = version.name, version.version
    backbone, probe = read_card(recommender).backbone, load_json(folder / PROBE_FILE)
    verdict = gate.ask(recommender, f"models:/{name}/{number}", uri, probe, backbone)
    tags = {
        "gate_largest_difference": repr(verdict.largest_difference),
        "gate_dtype": verdict.dtype,
        "gate_device": verdict.device,
    }
    place, stage = record.stage_folder(folder, recommender.name), recommender.name
    ranks, popular, counted = (_read(place / valid_ranks_file(who)) for who in (stage, POPULARITY, COUNTING))
    gain = over_popularity(ranks, popular)
    reasons = [*verdict.reasons, *against(gain)]
    if ranks is not None and counted is not None and gain is not None:
        reasons += below_counting(mrr_gain(*paired_ranks(ranks, counted, "the model", COUNTING)))
    if gain is not None:
        tags |= {"valid_mrr": repr(gain.mrr), "valid_mrr_popularity": repr(gain.other)}
        tags["valid_p_value"] = repr(gain.p_better)
    if not reasons and ranks is not None:
        improve = bool(record.params.get("require_improvement", True))
        reasons = promote(client, uri, version, ranks, improve=improve)
    tags[REASON] = "; ".join(reasons) or _said(gain, POPULARITY)
    # Last, because a version with it is not judged again.
    tags[GATE] = "failed" if reasons else "passed"
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)


def _read(path: Path) -> Ranks | None:
    return read_ranks(path) if path.is_file() else None


def over_popularity(ranks: Ranks | None, popular: Ranks | None) -> Gain | None:
    """Return what a model's ranks have over those of popularity; None where there are too few to tell.

    Raises:
        DataError: they are not of the same rows.
    """
    if ranks is None or popular is None or len(set(ranks.user_ids)) < ENOUGH_USERS:
        return None
    return mrr_gain(*paired_ranks(ranks, popular, "the model", POPULARITY))


def against(gain: Gain | None) -> list[str]:
    """Return what speaks against a model that has ``gain`` over popularity; empty if nothing does."""
    if gain is None:
        return [
            f"not compared with {POPULARITY}, which takes validation rows of {ENOUGH_USERS} users or more "
            "(setting valid_rows)"
        ]
    return [] if gain.better else [f"ranks no better than {POPULARITY} ({_said(gain, POPULARITY)})"]


def below_counting(gain: Gain) -> list[str]:
    """Return what speaks against a model that has ``gain`` over the best that only counts."""
    if not gain.worse:
        return []
    return [f"ranks worse than the best counting contestant ({_said(gain, 'it', loss=True)})"]


def _said(gain: Gain | None, other: str, *, loss: bool = False) -> str:
    assert gain is not None
    p_value = gain.p_worse if loss else gain.p_better
    mrr = f"MRR {gain.mrr:.4f} against {gain.other:.4f} of {other}"
    return f"{mrr} on {gain.n} validation rows, p = {p_value:.2g}"


def promote(client: Any, uri: str, version: Any, ranks: Ranks, *, improve: bool) -> list[str]:
    """Make a version champion unless the present one is better; return what speaks against it.

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
            reasons = worse_than(client, version, ranks, before)
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


def worse_than(client: Any, version: Any, ranks: Ranks, champion: Any) -> list[str]:
    """Return why a version is worse than the champion, or cannot be compared with it; empty if neither."""
    named = f"the champion, version {champion.version}"
    if version.tags.get(DATA) != champion.tags.get(DATA):
        return [f"not comparable with {named}, which was validated on other data; {_WAIVED}"]
    theirs = _ranks_of_version(client, champion)
    if theirs is None:
        return [f"not comparable with {named}, which left no ranks of validation rows; {_WAIVED}"]
    try:
        gain = mrr_gain(*paired_ranks(ranks, theirs, "the model", named))
    except DataError as error:
        seeds = [str(tags.get(SEED)) for tags in (version.tags, champion.tags)]
        seeds_differ = f"seed {' against '.join(seeds)}: " if seeds[0] != seeds[1] else ""
        return [f"not comparable with {named} ({seeds_differ}{error}); {_WAIVED}"]
    return [f"worse than {named} ({_said(gain, 'it', loss=True)})"] if gain.worse else []


def _ranks_of_version(client: Any, version: Any) -> Ranks | None:
    """Return the ranks of validation rows that were kept with a version's run; None if there are none."""
    stage = version.tags.get(STAGE, "")
    run_id, file = version.tags.get(f"run_id.{stage}"), valid_ranks_file(stage)
    if run_id is None or file not in {kept.path for kept in client.list_artifacts(run_id)}:
        return None
    with tempfile.TemporaryDirectory(prefix="recbole-dynamicpo-") as work:
        return read_ranks(Path(client.download_artifacts(run_id, file, work)))
