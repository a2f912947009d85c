"""Settings: every problem at once, each with what was got and what was wanted."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.settings import Settings, fields_of_settings, properties_folder

MODEL_FOLDER = properties_folder() / "model"
MODEL_FILES = sorted(MODEL_FOLDER.rglob("*.yaml"))
# properties/study holds lists of settings to be varied, which tests/flows reads.
ALL_FILES = sorted(path for path in properties_folder().rglob("*.yaml") if path.parent.name != "study")


def complaint(values: dict[str, Any], given: list[str] | None = None, known: list[str] | None = None) -> str:
    """Return the message for wrong ``values``."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping(values, given=given or [], known=known or [])
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    settings = Settings.from_mapping({})
    assert settings == Settings()
    assert (settings.objective, settings.dynamic) == ("dmpo", True)
    assert (settings.beta, settings.margin, settings.num_clusters) == (1.0, 6.0, 3)
    assert (settings.num_negatives, settings.num_candidates, settings.max_history) == (15, 20, 10)
    assert (settings.lora_rank, settings.lora_alpha) == (8, 32)


def test_every_default_is_itself_valid() -> None:
    """And every setting has a text that says what it is."""
    assert Settings.from_mapping(dataclasses.asdict(Settings())) == Settings()
    assert all(item.description for item in fields_of_settings().values())


def test_every_problem_is_reported_at_once() -> None:
    message = complaint(
        {
            "beta": 0,
            "num_clusters": 2.5,
            "dynamic": "yes",
            "objective": "dmop",
            "lora_dropout": 1.0,
            "seed": -1,
        },
        given=["bata", "beta", "max_histroy"],
    )
    assert message.splitlines() == [
        "wrong settings:",
        "  bata: unknown setting (did you mean 'beta'?)",
        "  max_histroy: unknown setting (did you mean 'max_history'?)",
        "  objective: got 'dmop', wanted one of dmpo, mppo, sdpo, listwise, recpo, simpo "
        "(did you mean 'dmpo'?)",
        "  dynamic: got 'yes', wanted true or false",
        "  beta: got 0, wanted more than 0",
        "  num_clusters: got 2.5, wanted a whole number",
        "  lora_dropout: got 1.0, wanted at most 0.99",
        "  seed: got -1, wanted at least 0",
    ]


def test_settings_of_others_are_known() -> None:
    """RecBole's own keys are not ours to check; a key near one of them names it."""
    assert Settings.from_mapping({"topk": "x"}, given=["topk"], known=["topk"]) == Settings()
    assert "tpok: unknown setting (did you mean 'topk'?)" in complaint({}, given=["tpok"], known=["topk"])
    assert complaint({}, given=["qqqqqqqq"]).endswith("qqqqqqqq: unknown setting")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("max_history", 3, 3),
        ("max_history", 3.0, 3),  # what a command line or JSON may make of 3
        ("beta", 2, 2.0),
        ("beta", 1e-9, 1e-9),
        ("margin", -1, -1.0),  # a margin may have any sign
        ("dynamic", False, False),
        ("item_title_field", None, None),
        ("item_title_field", "none", None),
        ("item_title_field", "None", None),
        ("item_title_field", "null", None),
        ("item_title_field", "", None),
        ("item_title_field", "movie_title", "movie_title"),
        ("lora_targets", "all-linear", ("all-linear",)),
        ("lora_targets", ["q_proj", "v_proj"], ("q_proj", "v_proj")),
        ("warmup_ratio", 1, 1.0),
        ("sft_rows", 0, 0),
    ],
)
def test_accepted(name: str, value: Any, wanted: Any) -> None:
    found = getattr(Settings.from_mapping({name: value}), name)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_history", True, "a whole number"),  # true is not 1
        ("max_history", "3", "a whole number"),
        ("max_history", 3.5, "a whole number"),
        ("max_history", None, "a whole number"),
        ("max_history", math.inf, "a whole number"),
        ("max_history", 0, "at least 1"),
        ("max_length", 15, "at least 16"),
        ("beta", True, "a finite number"),
        ("beta", "1", "a finite number"),
        ("beta", math.nan, "a finite number"),
        ("beta", math.inf, "a finite number"),
        ("beta", -1.0, "more than 0"),
        ("learning_rate", 0.0, "more than 0"),
        ("warmup_ratio", 1.01, "at most 1"),
        ("dynamic", 1, "true or false"),
        ("dynamic", None, "true or false"),
        ("backbone", "", "a non-empty text"),
        ("backbone", 7, "a non-empty text"),
        ("backbone", None, "a non-empty text"),
        ("item_title_field", 7, "a non-empty text"),
        ("lora_targets", [], "a list of texts"),
        ("lora_targets", [1], "a list of texts"),
        ("lora_targets", {"q_proj": 1}, "a list of texts"),
        ("dtype", "float16", "one of auto, float32, bfloat16, float64"),
    ],
)
def test_refused(name: str, value: Any, reason: str) -> None:
    message = complaint({name: value})
    assert f"{name}: got {value!r}, wanted {reason}" in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize("name", ["seed", "beta", "max_history"])
def test_a_number_too_large_for_a_float(name: str) -> None:
    """10^400 has no float, and no setting has a use for it."""
    assert f"{name}: got 1000" in complaint({name: 10**400})


def test_contradictions() -> None:
    """15 negatives are the default, so 16 candidates are enough and 15 are not."""
    assert Settings.from_mapping({"num_candidates": 16}).num_candidates == 16
    message = complaint({"num_candidates": 15})
    assert "num_negatives: got 15, wanted at most num_candidates - 1 = 14" in message
    assert "at most num_candidates - 1 = 0" in complaint({"num_candidates": 1, "num_negatives": 1})
    assert "num_candidates: got 0, wanted at least 2" in complaint({"num_candidates": 0})
    assert "catalogue_prior: wanted none" in complaint({"catalogue_prior": ["popularity"]})
    for source in ("moving", "own"):
        wanted = f"negatives: got {source}, wanted uniform, as positions is not all"
        assert wanted in complaint({"negatives": source})
    assert "sft_weight: got -1, wanted at least 0" in complaint({"sft_weight": -1})
    assert "rank_among: wanted candidates alone" in complaint({"rank_among": ["all"]})
    assert "some of popularity" in complaint({"catalogue_prior": ["taste"], "likelihood": "catalogue"})


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().beta = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.stem)
def test_every_shipped_file_passes(path: Path) -> None:
    """Over the file that all models share, as RecBole reads them; our keys arrive as they are written."""
    base = yaml.safe_load((MODEL_FOLDER / "DynamicPO.yaml").read_text(encoding="utf-8"))
    written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    settings = Settings.from_mapping({**base, **written})
    for item in dataclasses.fields(Settings):
        if item.name in written:
            wanted = written[item.name]
            assert getattr(settings, item.name) == (tuple(wanted) if isinstance(wanted, list) else wanted)


def test_the_models_differ_as_their_names_say() -> None:
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in MODEL_FILES}
    assert {"DynamicPO", "SFTRec", "DMPO", "MPPO", "SDPO"} == files.keys()
    assert files["DynamicPO"]["dynamic"] is True
    for name in ("DMPO", "MPPO", "SDPO"):
        assert files[name] == {"objective": name.lower(), "dynamic": False}
    assert files["SFTRec"]["epochs"] == 0
