"""One mapping of what decides a result: each ingredient moves the keys that it should, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from recbole_dynamicpo.errors import CheckpointError
from recbole_dynamicpo.host.config import PlainConfig
from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.ingredients import (
    FACTS,
    RECBOLE_DECIDES,
    Ingredients,
    decides,
    default_settings,
    differing,
    flat_settings,
)
from recbole_dynamicpo.job import Job
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import load_backbone
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.names import DECIDES, RECORDED
from recbole_dynamicpo.pipeline import begin, evaluate, prepare, train
from recbole_dynamicpo.settings import Settings, fields_of_settings, properties_folder, read_settings
from recbole_dynamicpo.stage_results import stage_key
from recbole_dynamicpo.tracking.record import read_record
from recbole_dynamicpo.training.recording import gather

PARAMS = {name: field.default for name, field in fields_of_settings().items()}
FILLED = {name: f"digest of {name}" for name in FACTS}


def of(params: dict[str, Any] | None = None, facts: dict[str, str | None] | None = None) -> Ingredients:
    return Ingredients.of({**PARAMS, **(params or {})}, {**FILLED, **(facts or {})})


def moved(one: Ingredients, other: Ingredients) -> list[str]:
    """Return the stages whose results have other keys."""
    return [stage for stage in RECORDED if stage_key(stage, one) != stage_key(stage, other)]


def from_stage(stage: str) -> list[str]:
    """Return a stage and those after it; none for ``nothing``."""
    return list(RECORDED[DECIDES.index(stage) :])


@pytest.mark.parametrize("name", PARAMS)
def test_a_setting_moves_the_stages_from_the_one_it_decides(name: str) -> None:
    assert moved(of(), of({name: "something else"})) == from_stage(decides(name))


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_moves_the_stages_from_the_one_it_decides(name: str) -> None:
    assert moved(of(), of(facts={name: "another digest"})) == from_stage(FACTS[name])


@pytest.mark.parametrize("name", [*RECBOLE_DECIDES, "val_interval", "a.setting.nobody.knows"])
def test_so_does_one_of_recboles(name: str) -> None:
    """One that is not listed is taken to shape the rows."""
    wanted = from_stage(RECBOLE_DECIDES.get(name, "prepare"))
    assert moved(of({name: 1}), of({name: 2})) == wanted


@pytest.mark.parametrize("name", [*PARAMS, *(f"fact.{fact}" for fact in FACTS)])
def test_scores_depend_on_the_model_and_on_no_row(name: str) -> None:
    fact = name.removeprefix("fact.")
    other = of(facts={fact: "x"}) if name != fact else of({name: "x"})
    of_the_model = {"backbone", "tokenizer", "dtype", "device", "kernel"}
    assert (other.scores() != of().scores()) == (
        name == "load_in_4bit" or (name != fact and fact in of_the_model)
    )


@pytest.mark.parametrize("name", [name for name in PARAMS if decides(name) != "nothing"])
def test_a_record_older_than_a_setting_has_its_default(name: str) -> None:
    """A run or a study goes on after an upgrade that brought settings, unless one of them is used."""
    now = flat_settings(vars(Settings()))
    older = {kept: value for kept, value in now.items() if kept != name}
    assert differing(older, now) == differing(now, older) == []
    assert differing(older, {**now, name: "something else"}) == [name]


def test_what_is_no_setting_has_no_default() -> None:
    assert differing({"fact.data": "a", "seed": 1}, {"fact.data": "b", "val_interval": None}) == [
        "fact.data",
        "seed",
    ]


def test_library_versions_part_results_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    before, digest = [stage_key(stage, of()) for stage in RECORDED], of().digest("evaluate")
    monkeypatch.setattr(
        "recbole_dynamicpo.stage_results.versions", lambda: {"torch": "99"}
    )  # fmt: skip
    after = [stage_key(stage, of()) for stage in RECORDED]
    assert not set(before) & set(after)
    assert of().digest("evaluate") == digest


def test_every_setting_that_decides_is_recorded_and_secrets_are_named() -> None:
    flat = flat_settings(
        {"tokens_per_batch": 7, "API_KEY": "x", "token": "y", "inner": {"password": "z", "a": 1}}
    )
    assert flat == {"tokens_per_batch": 7, "inner.a": 1}


@pytest.fixture
def job(toy_settings: dict[str, Any], tmp_path: Path) -> Job:
    settings = {key: value for key, value in toy_settings.items() if key != "checkpoint_dir"}
    return Job("DynamicPO", "toy", (), {**settings, "eval_rows": 6}, str(tmp_path / "store"))


def test_the_code_of_an_own_objective_parts_results(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the preference stage and after; the name alone would not tell."""
    path = tmp_path / "mine.py"
    path.write_text("from recbole_dynamicpo.objectives.strategies import DMPO\nclass Mine(DMPO):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PlainConfig("DynamicPO", "toy", [], {**job.overrides, "objective": "mine.Mine"})
    settings = read_settings(config)
    before = gather(config, settings)
    path.write_text(path.read_text() + "    strength = 2\n")
    assert moved(before, gather(config, settings)) == ["preference", "evaluate"]


def change_title(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    path = data / "toy" / "toy.item"
    path.write_text(path.read_text().replace("\ti", "\t i", 1).replace(" ", " the ", 1))


def change_tokenizer(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    path = backbone / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cleaned": True}))


def change_weights(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    path = backbone / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 5000.0}))


def change_template(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    template.write_text("Liked:\n{history}\nOf\n{candidates}\nnext:")


def change_rows(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    path = data / "toy" / "toy.inter"
    path.write_text(path.read_text().replace("1700001", "1700002", 1))


def change_adapter(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    """Of the same shapes and settings, as of a run with another seed."""
    path = adapter / "adapter_model.safetensors"
    weights = {name: value + 0.01 for name, value in load_file(path).items()}
    save_file(weights, path)


def change_scalars(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    """What is trained beside an adapter is a part of it."""
    (adapter / "scalars.json").write_text('{"scale": 2.0}')


def change_end(data: Path, backbone: Path, template: Path, adapter: Path) -> None:
    path = backbone / "tokenizer.json"
    path.write_text(path.read_text().replace("\n", " \n", 1))


CONTENT: dict[str, tuple[Callable[..., None], str]] = {
    "a title": (change_title, "prepare"),
    "a time": (change_rows, "prepare"),
    "the tokenizer": (change_tokenizer, "sft"),
    "the tokenizer's own file": (change_end, "sft"),
    "the backbone": (change_weights, "sft"),
    "the template's text": (change_template, "sft"),
    "the SFT adapter": (change_adapter, "sft"),
    "the numbers beside it": (change_scalars, "sft"),
}


@pytest.fixture
def sft_adapter(tiny_backbone: Path, tmp_path: Path) -> Path:
    """An SFT adapter of the settings of ``toy_settings``."""
    shape = LoraShape(4, 32.0, 0.0, ("q_proj", "k_proj", "v_proj", "o_proj"), 0)
    policy = Policy(load_backbone(str(tiny_backbone), dtype="float32"), shape, seed=0)
    (tmp_path / "adapter").mkdir()
    policy.save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("what", CONTENT)
def test_content_that_changes_under_its_name_is_noticed(
    toy_settings: dict[str, Any], tiny_backbone: Path, sft_adapter: Path, tmp_path: Path, what: str
) -> None:
    backbone, template = tmp_path / "backbone", tmp_path / "own.txt"
    shutil.copytree(tiny_backbone, backbone)
    template.write_text("Seen:\n{history}\nOf\n{candidates}\nnext:")
    data = Path(toy_settings["data_path"])
    given = {**toy_settings, "backbone": str(backbone), "prompt": str(template)}
    given["sft_adapter"] = str(sft_adapter)

    def now() -> Ingredients:
        config = PlainConfig("DynamicPO", "toy", [], given)
        return gather(config, read_settings(config))

    before = now()
    change, stage = CONTENT[what]
    change(data, backbone, template, sft_adapter)
    assert moved(before, now()) == from_stage(stage)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_title, "data"),
        (change_rows, "data"),
        (change_template, "template"),
        (change_adapter, "adapter"),
        (change_scalars, "adapter"),
        (change_tokenizer, "tokenizer"),
    ],
)
def test_a_run_is_not_resumed_with_other_content(
    change: Callable[..., None],
    said: str,
    toy_settings: dict[str, Any],
    tiny_backbone: Path,
    sft_adapter: Path,
    tmp_path: Path,
) -> None:
    backbone, template = tmp_path / "backbone", tmp_path / "own.txt"
    shutil.copytree(tiny_backbone, backbone)
    template.write_text("Seen:\n{history}\nOf\n{candidates}\nnext:")
    given = {**toy_settings, "backbone": str(backbone), "prompt": str(template), "compare_stages": False}
    given |= {"sft_adapter": str(sft_adapter), "preference_rows": 4}
    run("DynamicPO", "toy", overrides=given)
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    change(Path(toy_settings["data_path"]), backbone, template, sft_adapter)
    with pytest.raises(CheckpointError, match=rf"fact\.{said}: then .*, now"):
        run("DynamicPO", "toy", overrides={**given, "resume": str(folder)})


def test_the_record_of_a_run_holds_every_setting(toy_settings: dict[str, Any]) -> None:
    """Also those at their defaults, and those whose names look like secrets."""
    given = {**toy_settings, "compare_stages": False, "sft_rows": 4, "preference_rows": 4}
    run("DynamicPO", "toy", overrides=given)
    (folder,) = Path(toy_settings["checkpoint_dir"]).iterdir()
    params = read_record(folder).params
    assert {name for name in PARAMS if decides(name) != "nothing"} <= params.keys()
    assert params["tokens_per_batch"] == PARAMS["tokens_per_batch"]
    assert {"learner", "eval_args.order", "eval_args.split.LS"} <= params.keys()  # of RecBole's


@pytest.mark.parametrize(
    "name",
    ["tokens_per_batch", "token_num_threshold", "key_field", "max_tokens", "secretary", "passwords_seen"],
)
def test_a_name_that_looks_like_a_secret_is_none(name: str) -> None:
    assert flat_settings({name: 3, "outer": {name: 4}}) == {name: 3, f"outer.{name}": 4}


@pytest.mark.parametrize("name", ["token", "HF_TOKEN", "api_key", "Password", "aws_secret_access_key"])
def test_secrets_are_written_nowhere(name: str) -> None:
    assert flat_settings({name: "x", "outer": {name: "y", "beta": 1}}) == {"outer.beta": 1}


@pytest.mark.parametrize(
    "more",
    [
        *({"topk": [1, 5, 10, 20]}, {"eval_batch_size": 3}, {"compare_stages": False}, {"eval_rows": 4}),
        *({"tail_ratio": 0.2}, {"metrics": ["NDCG", "MAP"]}, {"metric_decimal_place": 6}),
    ],
)
def test_what_only_evaluation_depends_on_trains_nothing_anew(job: Job, more: dict[str, Any]) -> None:
    one = prepare(job).outputs["places"]
    other = prepare(Job(job.model, job.dataset, (), {**job.overrides, **more}, job.store)).outputs["places"]
    assert [stage for stage in RECORDED if one[stage] != other[stage]] == ["evaluate"]


def test_new_data_make_a_run_of_their_own(job: Job) -> None:
    one = begin(job, prepare(job))
    interactions = Path(job.overrides["data_path"]) / "toy" / "toy.inter"
    interactions.write_text(interactions.read_text() + "u1\ti39\t1800000000\n")
    other = begin(job, prepare(job))
    assert one != other
    assert read_record(one).key != read_record(other).key


def test_recboles_configuration_is_built_once_a_stage(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    make = PlainConfig.__init__

    def counted(self: PlainConfig, *args: Any, **kwargs: Any) -> None:
        built.append("one")
        make(self, *args, **kwargs)

    monkeypatch.setattr(PlainConfig, "__init__", counted)
    prepared = prepare(job)
    begin(job, prepared)
    for stage in ("sft", "preference"):
        train(job, stage, prepared)
    evaluate(job, prepared)
    assert len(built) == len(RECORDED)


@pytest.mark.parametrize("file", sorted(properties_folder().glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_default_says_what_it_decides(file: Path) -> None:
    assert all(
        decides(name) in DECIDES
        for name in flat_settings(PlainConfig(file.stem, "ml-100k").final_config_dict)
    )


def test_model_and_data_set_have_files_above_the_bare_defaults() -> None:
    found = default_settings("SDPO", "lastfm")
    assert (found.objective, found.dynamic) == ("sdpo", False)  # of the model
    assert found.catalogue_prior == ("transitions", "cooccurrence", "popularity")  # of the data set
    assert (found.likelihood, found.max_history) == ("catalogue", 20)  # of all our models
    assert found.sft_weight == Settings().sft_weight
    assert default_settings("Own", "toy") == default_settings("DynamicPO", "toy") != Settings()
