"""Reference log-probabilities, computed once and kept on disk.

A folder belongs to one reference: backbone, adapter, dtype and way of scoring. In it lie shards,
each written whole or not at all and never changed, so that neither a crash nor a second process can
leave a wrong value: the worst is a row computed twice. A row is found by the hash of all else that its
log-probabilities depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor
from tqdm import tqdm

from ..ingredients import Ingredients
from ..language_model.embedded import cache_folder
from ..language_model.policy import REFERENCE
from ..parallel import here
from ..storage import atomic_file, sha256_json
from .model import DynamicPO

logger = logging.getLogger(__name__)

# Rows per shard at most: a crash loses no more work.
SHARD_ROWS = 128
# Raised where a change of the code moves scores by more than rounding in float32.
SCORING = 3


def reference_key(scores: Mapping[str, Any], adapter: str, *, shares_prompt: bool) -> str:
    """Return the 24 hexadecimal digits that name the folder of one reference.

    Args:
        scores: the ingredients of its scores (``Ingredients.scores``).
        adapter: SHA-256 of the adapter.
        shares_prompt: whether all completions of a prompt are scored in one pass.
    """
    return sha256_json([SCORING, scores, adapter, shares_prompt])[:24]


class ReferenceCache:
    """Stored log-probabilities of one reference.

    Args:
        folder: of this reference; its name holds the hashes that it depends on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> dict[str, list[float]]:
        """Return all stored rows; an unreadable shard is passed over with a warning."""
        stored: dict[str, list[float]] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                content = path.read_bytes()
                if path.stem != hashlib.sha256(content).hexdigest()[:32]:
                    raise ValueError("its name is not the hash of its content")
                shard = json.loads(content)
                stored.update({str(key): [float(v) for v in values] for key, values in shard.items()})
            except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
                logger.warning(
                    "%s: not a readable cache shard (%r); its rows are computed again", path, error
                )
        return stored

    def store(self, rows: dict[str, list[float]]) -> None:
        """Add one shard, named by its content."""
        text = json.dumps(rows, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        with atomic_file(self.folder / f"{name}.json") as handle:
            handle.write(text)

    def complete(
        self,
        keys: Sequence[str],
        score: Callable[[list[int]], Tensor],
        progress: Callable[[int], bool | None],
    ) -> tuple[Tensor, int] | None:
        """Return (n, C) log-probabilities of all rows and how many of them had to be computed.

        The processes of a run take turns at the parts that none of them has stored.

        Args:
            keys: (n,) a hash of each row.
            score: computes the (m, C) log-probabilities of the rows with these m indices.
            progress: told the number of rows done at each step; says whether to stop.

        Returns:
            None if a process was to stop; what was computed is stored.
        """
        processes, stored = here(), self.load()
        known = processes.gather([key in stored for key in keys])
        missing = [index for index, found in enumerate(zip(*known, strict=True)) if not any(found)]
        stop = progress(len(keys) - len(missing))
        size = min(SHARD_ROWS, max(1, math.ceil(len(missing) / processes.world)))
        for start in range(processes.rank * size, len(missing), processes.world * size):
            if stop:
                break
            chunk = missing[start : start + size]
            values = score(chunk).double().tolist()
            fresh = {keys[index]: value for index, value in zip(chunk, values, strict=True)}
            self.store(fresh)
            stored.update(fresh)
            stop = progress(len(chunk))
        if processes.agree(bool(stop)):
            return None
        stored = {key: stored[key] for key in keys if key in stored}
        for others in processes.gather(stored):
            stored.update(others)
        table = np.array([stored[key] for key in keys], dtype=np.float64)
        return torch.from_numpy(table), len(missing)


class Rows(NamedTuple):
    """Rows whose reference log-probabilities are wanted."""

    rows: Interaction
    keys: list[str]  # a hash a row of all that they depend on, but for the adapter
    score: Callable[[Interaction], Tensor]  # the log-probabilities of some rows, a line each


def reference_logps(
    model: DynamicPO,
    ingredients: Ingredients,
    show_progress: bool,
    stop: Callable[[], bool],
    wanted: Rows,
) -> Tensor | None:
    """Return reference log-probabilities of rows, a line each, from the cache where known.

    Args:
        model: whose reference is frozen.
        ingredients: of the run.
        show_progress: show a bar.
        stop: asked after each part that reached the cache.
        wanted: the rows.

    Returns:
        None if a process of the run was to stop.
    """
    policy, backbone, keys = model.policy, model.policy.backbone, wanted.keys
    adapter = policy.digest(REFERENCE)
    key = reference_key(ingredients.scores(), adapter, shares_prompt=backbone.shares_prompt)
    cache = ReferenceCache(cache_folder() / "reference" / key)
    with tqdm(total=len(keys), desc="reference", disable=not show_progress, unit="row") as bar:

        def advance(done: int) -> bool:
            bar.update(done)
            return stop()

        found = cache.complete(keys, lambda chosen: wanted.score(wanted.rows[chosen]), advance)
    if found is None:
        return None
    table, computed = found
    logger.info("reference: %d rows computed, %d from %s", computed, len(keys) - computed, cache.folder)
    return table
