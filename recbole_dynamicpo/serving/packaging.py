"""What MLflow holds of a recommender: its folder without anything that only this machine knows.

A packaged recommender is a recommender folder with one more file, ``settings.json``. A backbone that
is a local folder is called by the folder's own name in it; which weights are meant, its SHA-256 says.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..errors import AdapterError
from ..language_model.adapter_folder import CONFIG_FILE, SCALARS_FILE, WEIGHTS_FILE
from ..language_model.embedded import EMBEDDED
from ..retrievers.retriever import file_of
from ..settings import package_folder, properties_folder
from ..storage import write_json
from .folder import CATALOGUE_FILE, MODEL_CARD_FILE, RECOMMENDER_FILE, TEMPLATES_FILE, read_card, read_json
from .priors import PRIORS_FILE

SETTINGS_FILE = "settings.json"

DISTRIBUTION = "recbole-dynamicpo"
# What loading and ranking import, of what we require; RecBole, Prefect, figures and data files stay at home.
_SERVING = (
    *("mlflow", "pandas", "numpy", "scipy", "pydantic", "filelock", "tqdm"),
    *("torch", "transformers", "peft", "accelerate", "gguf", "safetensors", "huggingface_hub"),
)
# MLflow without its server and database: it loads models and answers for them.
_LIGHTER = {"mlflow": "mlflow-skinny"}


def package_recommender(folder: Path, target: Path, settings: Mapping[str, Any]) -> None:
    """Write the packaged form of a recommender folder.

    Args:
        folder: as a run leaves it in ``saved/<run>/preference``.
        target: new folder.
        settings: what a later evaluation needs of the run: data set, seed, ``num_candidates`` and others.

    Raises:
        AdapterError: a file of the folder is missing or damaged.
    """
    target.mkdir(parents=True)
    beside = [name for name in (SCALARS_FILE, PRIORS_FILE, MODEL_CARD_FILE) if (folder / name).is_file()]
    card = read_card(folder)
    retrievers = [file_of(name) for name in card.retrievers]
    for name in (WEIGHTS_FILE, *beside, *retrievers, CATALOGUE_FILE, TEMPLATES_FILE):
        try:
            shutil.copyfile(folder / name, target / name)
        except OSError as error:
            raise AdapterError(f"{folder / name}: cannot be read ({error.strerror})") from error
    for name, key in ((RECOMMENDER_FILE, "backbone"), (CONFIG_FILE, "base_model_name_or_path")):
        content = read_json(folder / name)
        if not isinstance(content, dict) or not isinstance(content.get(key), str):
            raise AdapterError(f"{folder / name}: wanted the name of the backbone as '{key}'")
        write_json(target / name, {**content, key: portable_backbone(content[key])})
    kept = {name: _portable(value) for name, value in settings.items()}
    if isinstance(kept.get("backbone"), str):
        kept["backbone"] = portable_backbone(settings["backbone"])
    write_json(target / SETTINGS_FILE, kept)


def portable_backbone(name: str) -> str:
    """Return what a backbone is called elsewhere: a local folder by its own name, others as they are."""
    place = Path(name).expanduser()
    hub_id = name.count("/") == 1 and not name.startswith(("/", ".", "~"))
    if name == EMBEDDED or (hub_id and not place.is_dir()):
        return name
    return place.resolve().name


def _portable(value: Any) -> Any:
    """Return a setting's value with absolute paths cut to their last part."""
    if isinstance(value, Mapping):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith(("/", "~"))):
        return Path(value).name
    return value


def requirements() -> list[str]:
    """Return what pip has to install where a logged model is loaded, with the bounds of our own requirements.

    Our code is no part of it: it travels with the model (:func:`package_code`).
    """
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    ours = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    here = {r.name: r for r in ours if r.marker is None or r.marker.evaluate({"extra": ""})}
    return [f"{_LIGHTER.get(name, name)}{here[name].specifier}" for name in _SERVING]


def package_code(target: Path) -> None:
    """Write this package, its shipped settings within it, to the new folder ``target``; flows stay out."""
    unwanted = shutil.ignore_patterns("__pycache__", "flows", "properties")
    shutil.copytree(package_folder(), target, ignore=unwanted)
    shutil.copytree(properties_folder(), target / "properties", ignore=shutil.ignore_patterns("__pycache__"))


def example_request(folder: Path) -> dict[str, Any]:
    """Return a request that shows the form, made of popular titles of a recommender folder's catalogue."""
    titles = Catalogue.load(folder / CATALOGUE_FILE).popular(5)
    return {"history": titles[:2], "candidates": titles[2:] or titles, "k": 3}


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
