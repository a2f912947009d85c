"""What RecBole's models are worth as priors, beside counts and with them; no language model speaks.

    python benchmarks/retriever.py                                # ml-100k, SASRec in two folds
    python benchmarks/retriever.py --models EASE GRU4Rec --epochs 5

Weights are fitted to 1,000 training titles, as a run does before it trains: counts without the user who is
asked about, retrievers trained without the user's fold. The trie is that of the titles' bytes, so that no
backbone is needed. Rows are all validation and test rows; 20 candidates a row as a run draws them.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from recbole.data import data_preparation

from recbole_dynamicpo.dataset.columns import CANDIDATE_IDS
from recbole_dynamicpo.dataset.dataset import DynamicPODataset
from recbole_dynamicpo.dataset.sampling import row_generator
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.likelihoods.catalogue import FITTED_ROWS, title_sequences
from recbole_dynamicpo.retrievers.fitted import fit_retrievers
from recbole_dynamicpo.retrievers.training import Host
from recbole_dynamicpo.serving.priors import Priors
from recbole_dynamicpo.title_trie.catalogue_likelihood import Mixture, catalogue_logps
from recbole_dynamicpo.title_trie.fitted_counts import fit_weights, sample_positions
from recbole_dynamicpo.title_trie.prior import Histories
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trie_builder import build_trie
from recbole_dynamicpo.training.evaluating import rank_candidates
from recbole_dynamicpo.training.whole_catalogue import WholeCatalogue

COUNTS = ["transitions", "popularity"]
FOUND_AMONG = 200


def measure(settings: dict[str, Any], models: list[str]) -> list[dict[str, Any]]:
    """Return a line for each set of priors and each split.

    Args:
        settings: of a run, over the defaults.
        models: RecBole's names.
    """
    names = [*COUNTS, *(f"recbole:{model}" for model in models)]
    own = {**settings, "catalogue_prior": names, "valid_rows": 0, "eval_rows": 0}
    config = PlainConfig("DynamicPO", str(own.pop("dataset", "ml-100k")), [], own)
    data = DynamicPODataset(config)
    data_preparation(config, data)
    titles, taken = data.catalogue.titles, title_sequences(data)
    trie = build_trie(titles, [[*title.encode()] for title in titles], 256)
    first = trie.item_order[trie.item_start[:-1]] + 1
    started = time.perf_counter()
    retrievers = fit_retrievers(taken, first, Host(config, data), data.settings)
    seconds = time.perf_counter() - started
    sources = dict(zip(names, Priors.count(names, taken, retrievers)(trie), strict=True))
    numbers, chains = np.concatenate([[-1], trie.title_of_item]), data.chains
    longest = int(config["MAX_ITEM_LIST_LENGTH"])
    asked, users, targets = [], [], []
    places = sample_positions(
        list(map(len, chains.items)), FITTED_ROWS, row_generator(data.settings.seed, 41)
    )
    for chain, at in places:
        asked.append(numbers[chains.items[chain][max(0, at - longest) : at]])
        users.append(int(chains.users[chain]))
        targets.append(numbers[chains.items[chain][at]])
    fitted = Histories(asked, np.array(users)), np.array(targets)
    catalogue, lines = WholeCatalogue(data), []
    for chosen in [*([name] for name in names), COUNTS, *([names] if models else [])]:
        weights, _ = fit_weights(trie, [sources[name] for name in chosen], *fitted)
        for phase in ("valid", "test"):
            part = data.built[phase]
            found = logps_of(part, numbers, trie, [sources[name] for name in chosen], weights)
            lines.append({"priors": chosen, "weights": weights, "rows": phase, "seconds": seconds,
                          **figures(part, catalogue, numbers, found)})  # fmt: skip
    return lines


def logps_of(data: DynamicPODataset, numbers: Any, trie: Any, sources: Any, weights: list[float]) -> Any:
    """Return (n, Y) log-probabilities of all titles behind the rows of a split."""
    histories = [numbers[history] for history in data.history(data.inter_feat)]
    asked, layout = (
        Histories(histories, np.full(len(histories), -1)),
        lay_out(trie, np.arange(trie.num_titles)[None]),
    )
    rows = np.arange(len(histories))[:, None]
    ratios = torch.stack([source(asked).log_ratios(layout.edges, rows) for source in sources])
    logits = Mixture(0.0, weights).logits(torch.zeros(ratios.shape[1:]).double(), ratios, layout.edges.edge)
    return catalogue_logps(logits.detach(), layout)[:, 0]


def figures(data: DynamicPODataset, catalogue: WholeCatalogue, numbers: Any, found: Any) -> dict[str, float]:
    """Return what log-probabilities of all titles say of the items chosen."""
    rows = data.inter_feat
    target = torch.from_numpy(numbers[rows[data.iid_field].numpy()])[:, None]
    shown = torch.from_numpy(numbers[rows[CANDIDATE_IDS].numpy()])
    among = rank_candidates(data, found.gather(1, shown)).ranks
    ranks, _ = catalogue.judge(rows, found, 10, catalogue.exposure())
    every = ranks.double()
    return {
        "nll": -found.gather(1, target).mean().item(), "hr1_of_20": float((among == 1).mean()),
        "hr10_of_all": (every <= 10).double().mean().item(), "mrr_of_all": (1 / every).mean().item(),
        f"found_among_{FOUND_AMONG}": (every <= FOUND_AMONG).double().mean().item(),
    }  # fmt: skip


def main() -> None:
    """Print the lines, and with ``--json`` write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["SASRec"], help="RecBole's names (SASRec)")
    parser.add_argument("--epochs", type=int, default=10, help="of each (10)")
    parser.add_argument("--folds", type=int, default=2, help="of users (2)")
    parser.add_argument("--settings", type=json.loads, default={}, help="RecBole's of the models, as JSON")
    parser.add_argument("--json", help="file for the lines")
    options = parser.parse_args()
    settings = {"retriever_epochs": options.epochs, "retriever_folds": options.folds, "show_progress": False}
    lines = measure({**settings, "retriever_settings": options.settings}, options.models)
    for line in lines:
        weights = ", ".join(
            f"{name} {w:.2f}" for name, w in zip(line["priors"], line["weights"], strict=True)
        )
        said = "  ".join(f"{name} {line[name]:.3f}" for name in list(line)[4:])
        print(f"{line['rows']:5}  {said}  {weights}")
    print(f"retrievers: {lines[0]['seconds']:.0f} s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump(lines, handle, indent=1)


if __name__ == "__main__":
    main()
