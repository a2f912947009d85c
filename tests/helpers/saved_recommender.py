"""A recommender folder without a training run: a random adapter on the tiny backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from recbole_dynamicpo.data.catalogue import Catalogue
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.serving.folder import CATALOGUE_FILE, TEMPLATES_FILE, Card, write_card
from recbole_dynamicpo.serving.ranking import Ranked
from recbole_dynamicpo.storage import write_json
from recbole_dynamicpo.title_trie.catalogue_likelihood import Mixture

# Items 3 and 5 bear one title. By falling popularity: Delta 9, Amber 8 (item 5; item 3 has 2), Bear 7, ...
IDS = ("1", "2", "3", "4", "5", "6", "7")
TITLES = ("Bear", "Canyon", "Amber", "Delta", "Amber", "Ember", "Forest")
POPULARITY = (7, 6, 2, 9, 8, 5, 4)
BY_POPULARITY = ["Delta", "Amber", "Bear", "Canyon", "Ember", "Forest"]


def write_recommender(
    folder: Path,
    backbone: Path,
    *,
    popular_candidates: int = 100,
    seed: int = 3,
    priors: list[str] | None = None,
) -> Path:
    """Write a recommender of the seven items above and return its folder.

    With ``priors`` its likelihood is the catalogue's, above these, and it shows no candidates.
    """
    policy = Policy(load_backbone(str(backbone), dtype="float32"), LoraShape(4, 8.0, 0.0, ("q_proj",), 0), 0)
    template = "Seen: {history:; }\nNext, one of {candidates:; }:"
    if priors is not None:
        policy.train_beside(Mixture(0.5, [1.25] * len(priors)))
        template = "Seen:{history:\\n}"
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trainable():
            weight.copy_(torch.randn(weight.shape, generator=draw))
    folder.mkdir(parents=True)
    policy.save(folder)
    Catalogue(IDS, TITLES, POPULARITY).save(folder / CATALOGUE_FILE)
    write_json(folder / TEMPLATES_FILE, [template])
    card = Card(
        backbone=policy.backbone.name,
        fingerprint=policy.backbone.fingerprint,
        dtype="float32",
        max_length=256,
        max_history=4,
        num_candidates=4,
        tokens_per_batch=4096,
        made_by={"model": "DynamicPO", "stage": "preference"},
        popular_candidates=popular_candidates,
        likelihood="vocabulary" if priors is None else "catalogue",
        priors=priors or [],
    )
    write_card(folder, card)
    return folder


def as_json(ranked: list[Ranked]) -> list[dict[str, Any]]:
    """Return a ranking as an answer has it."""
    return [{"title": item.title, "ids": list(item.ids), "score": item.score} for item in ranked]


def logps_without_recbole(folder: Path, titles: list[str]) -> list[float]:
    """Return all titles' log-probabilities behind ``titles``, in a process that cannot import RecBole."""
    code = (
        "import sys; sys.modules['recbole'] = None\n"
        "import json, recbole_dynamicpo\n"
        f"found = recbole_dynamicpo.load_recommender({str(folder)!r})\n"
        f"print(json.dumps(found.catalogue_logps({titles!r}).tolist()))\n"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr
    found: list[float] = json.loads(said.stdout)
    return found
