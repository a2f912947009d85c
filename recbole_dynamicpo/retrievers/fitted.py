"""The retrievers of a run: trained once, by its first process, and kept on disk by what decides them.

A model is named by its settings and the training sequences that it saw, so that neither a kill nor a second
run trains it again, and a fold's model can stand for no other. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ..data.counting import Sequences
from ..dataset.sampling import row_generator
from ..errors import AdapterError
from ..ingredients import versions
from ..language_model.embedded import cache_folder
from ..names import RETRIEVER
from ..parallel import here
from ..settings import Settings
from ..storage import atomic_file, locked, remove_partial, sha256_json
from .agreement import adopt
from .retriever import Retriever, deal_users, fit_sharpness
from .scorers import IntArray, Scorer, from_bytes, to_bytes
from .training import Asked, Host, train

logger = logging.getLogger(__name__)

# Training rows that the sharpness of a retriever's scores is fitted to.
SHARPENED_ROWS = 1000
# Raised where a change of the code makes another model of the same settings.
_VERSION = 1


def fit_retrievers(
    data: Sequences, first_items: IntArray, host: Host, settings: Settings
) -> dict[str, Retriever]:
    """Return name -> retriever for the priors of a run that are models of RecBole's.

    Args:
        data: what users took in training, as numbers of distinct titles + 1.
        first_items: (Y,) the item that stands for each distinct title.
        host: of the run.
        settings: of the run.

    Raises:
        SettingsError: a model cannot be trained with these settings, or not be kept; a checkpoint
            does not fit.
        AdapterError: a checkpoint cannot be used.
    """
    names = [name for name in settings.catalogue_prior if name.startswith(RETRIEVER)]
    if not names:
        return {}
    of_user = {user: first_items[titles - 1] for user, titles in data.of_user.items()}
    # Checkpoints first: what is wrong with one is said before anything is trained.
    begun = {name: _begun(name, host, settings) for name in names}
    return {name: _fit(asked, whole, of_user, host, settings) for name, (asked, whole) in begun.items()}


def _begun(name: str, host: Host, settings: Settings) -> tuple[Asked, Scorer | None]:
    """Return how a retriever's models are trained, and that of all users where a checkpoint holds it."""
    model, kept = name.removeprefix(RETRIEVER), settings.retriever_checkpoints or {}
    asked = Asked(model, settings.retriever_epochs, settings.seed, settings.retriever_settings or {})
    if model not in kept:
        return asked, None
    asked, content = here().decide(lambda: adopt(kept[model], asked, host))
    logger.info("retriever %s: that of all users from %s", model, kept[model])
    return asked, from_bytes(content, host.data.item_num, kept[model])[0]


def _fit(
    asked: Asked, whole: Scorer | None, of_user: Mapping[int, IntArray], host: Host, settings: Settings
) -> Retriever:
    folds, users = settings.retriever_folds, sorted(of_user)
    fold_of = deal_users(users, folds, row_generator(settings.seed, 43))
    seen = [[user for user in users if fold_of[user] != fold] for fold in range(folds)]
    parts = [_made(asked, {user: of_user[user] for user in part}, host) for part in seen]
    if whole is None:
        whole = _made(asked, of_user, host)
    found = Retriever(whole, 1.0, tuple(parts), fold_of)
    if not whole.logits:
        return found
    return replace(found, sharpness=here().decide(lambda: _sharpness(found, of_user, host, settings.seed)))


def _sharpness(found: Retriever, of_user: Mapping[int, IntArray], host: Host, seed: int) -> float:
    """Return the sharpness under which training rows, scored without their users, are likeliest."""
    places = [(user, place) for user, items in sorted(of_user.items()) for place in range(1, len(items))]
    draw, longest = row_generator(seed, 47), int(host.config["MAX_ITEM_LIST_LENGTH"])
    chosen = sorted(draw.permutation(len(places))[:SHARPENED_ROWS].tolist())
    rows = [places[number] for number in chosen]
    histories = [of_user[user][max(0, place - longest) : place] for user, place in rows]
    scores = found.scores(histories, np.array([user for user, _ in rows]))
    return fit_sharpness(scores, np.array([of_user[user][place] for user, place in rows]))


def _made(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> Scorer:
    """Return one model, which the first process reads where it was kept, or trains."""
    content = here().decide(lambda: _content(asked, sequences, host))
    return from_bytes(content, host.data.item_num, f"retriever {asked.model}")[0]


def _content(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> bytes:
    """Return the file of one model, trained unless it is there."""
    key = _key(asked, sequences, host)
    path = cache_folder() / "retrievers" / f"{asked.model}-{key[:24]}.safetensors"
    with locked(path, wait=True):
        if path.is_file():
            content = path.read_bytes()
            try:
                if from_bytes(content, host.data.item_num, str(path))[1]["key"] == key:
                    logger.info("retriever %s: from %s", asked.model, path)
                    return content
            except AdapterError as error:
                logger.warning("%s; it is trained again", error)
        remove_partial(path)
        logger.info("retriever %s: trained on %d users", asked.model, len(sequences))
        content = to_bytes(train(asked, sequences, host), {"key": key})
        with atomic_file(path, "wb") as handle:
            handle.write(content)
    return content


def _key(asked: Asked, sequences: Mapping[int, IntArray], host: Host) -> str:
    """Return the SHA-256 of all that decides a model."""
    rows = hashlib.sha256()
    for user, items in sorted(sequences.items()):
        rows.update(f"{user} {len(items)} ".encode() + np.ascontiguousarray(items, dtype=np.int64).tobytes())
    size = host.data.item_num, host.data.user_num, host.config["MAX_ITEM_LIST_LENGTH"]
    device = str(torch.device(host.config["device"]).type)
    return sha256_json(
        [_VERSION, asked._asdict(), rows.hexdigest(), [int(number) for number in size], device, versions()]
    )
