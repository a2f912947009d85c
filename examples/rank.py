"""Rank titles with a trained adapter: a folder, or a model of MLflow's registry.

python examples/rank.py saved/<run>/preference
python examples/rank.py models:/dynamicpo-ml-100k/1
"""

import sys

from recbole_dynamicpo import load_recommender

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    raise SystemExit(__doc__)
recommender = load_recommender(sys.argv[1])
history = ["Toy Story", "Heat", "Sabrina"]  # oldest first

# Of titles that one names, known to the catalogue or not.
for place, item in enumerate(recommender.rank(history, candidates=["Alien", "Babe", "Fargo"]), start=1):
    print(f"{place}. {item.title}  ({item.score:.2f} nats)")

# Of the whole catalogue, the history left out.
for place, item in enumerate(recommender.rank(history, k=10), start=1):
    print(f"{place}. {item.title}")
