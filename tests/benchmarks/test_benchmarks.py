"""The benchmarks' right half: both ways agree, a wrong one is noticed, counts are those by hand. No times."""

from __future__ import annotations

import json
import logging
import random
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone
from recbole_dynamicpo.language_model.packed import TokenBatch
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.objectives.preference import preference_loss
from recbole_dynamicpo.settings import Settings

from ..conftest import make_model, make_tokenizer, write_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import catalogue
import common
import dense
import evaluate
import floor
import host
import host_tries
import naive
import overhead
import parallel
import retriever
import start
import step
import workload

# One row: a prompt of 3 tokens, titles of 2 and 3, and an absent one.
BATCH = TokenBatch(
    torch.tensor([[5, 6, 7]]),
    torch.tensor([3]),
    torch.tensor([[[8, 9, 0], [10, 11, 12], [0, 0, 0]]]),
    torch.tensor([[2, 3, 0]]),
)


@pytest.fixture
def arguments(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a benchmark on the toy world, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECBOLE_DYNAMICPO_CACHE", str(tmp_path / "cache"))
    return [
        *("--json", "figures.json", "--dataset", "toy"),
        f"--data_path={write_dataset(tmp_path / 'dataset')}",
        "--load_col={'inter': ['user_id', 'item_id', 'timestamp']}",
        f"--backbone={tiny_backbone}",
        "--lora_rank=4",
        "--max_history=2",
        "--max_length=1000",
    ]


def figures() -> dict[str, Any]:
    return dict(json.loads(Path("figures.json").read_text()))


def test_both_ways_take_the_same_step(arguments: list[str]) -> None:
    sizes = ["--negatives", "1", "3", "11", "--naive_rows", "3", "--rows", "2", "--rounds", "1"]
    assert step.main([*arguments, *sizes]) == 0
    found = figures()
    assert found["agree"]
    assert list(found["steps"]) == ["1", "11", "3"]
    for measured in found["steps"].values():
        agreement = measured["agreement"]
        assert agreement["loss_difference"] < 1e-5
        assert agreement["gradient_difference"] < 1e-4
        assert agreement["loss_naive"] != pytest.approx(0.693147, abs=1e-4)  # where nothing would show
        assert measured["ours"]["tokens_per_row"] < measured["naive"]["tokens_per_row"]
    assert found["steps"]["1"]["cached"]["rows"] == 2
    assert "cached" not in found["steps"]["3"]
    assert found["most_over_least"]["negatives"] == [11, 1]
    assert found["machine"]["dtype"] == "float32"


def test_bfloat16_is_checked_in_float32(arguments: list[str]) -> None:
    sizes = ["--negatives", "3", "--rows", "1", "--rounds", "1", "--dtype", "bfloat16"]
    assert step.main([*arguments, *sizes]) == 0
    found = figures()
    assert found["agree"]
    assert found["agreement"]["gradient_difference"] < 1e-4
    assert found["machine"]["dtype"] == "bfloat16"


def test_shapes_without_trained_weights(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids beyond the smaller vocabulary are folded into it, the same for both ways."""
    tiny = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    monkeypatch.setitem(workload.SHAPES, "llama2-7b", tiny)
    sizes = ["--shapes", "llama2-7b", "--negatives", "3", "--rows", "1", "--rounds", "1"]
    assert step.main([*arguments, *sizes]) == 0
    assert figures()["model"]["backbone"] == "llama2-7b"


def _no_selection(positive: float, negatives: dict[str, float], clusters: int) -> list[str]:
    return list(negatives)


def _other_gradient(policy: Any, reference: Any, settings: Settings, real: Any = naive.loss) -> Any:
    """Return the right value with a gradient that is off by 1 %."""
    value = real(policy, reference, settings)
    return value + 0.01 * (value - value.detach())


def _last_token_lost(batch: TokenBatch, real: Any = naive.copies) -> Any:
    ids, mask, scored = real(batch)
    lengths = mask.sum(dim=1)
    scored[torch.arange(len(ids)), lengths - 1] = False
    return ids, mask, scored


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("boundary", _no_selection),
        ("beta", lambda positive, negatives, members, name, settings: settings.beta),
        ("loss", _other_gradient),
        ("copies", _last_token_lost),
    ],
)
def test_a_wrong_way_fails_the_benchmark(
    name: str, wrong: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(naive, name, wrong)
    sizes = ["--negatives", "15", "--rows", "1", "--rounds", "1"]
    assert step.main([*arguments, *sizes]) == 1
    assert not figures()["agree"]
    assert "disagree" in capsys.readouterr().err


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("negatives", [1, 2, 7, 15])
def test_the_naive_loss_is_that_of_the_package(negatives: int, dynamic: bool) -> None:
    """With rows that have violations and rows that have none."""
    draw = torch.Generator().manual_seed(negatives)
    policy = -10 * torch.rand(40, 1 + negatives, generator=draw, dtype=torch.float64)
    policy[::2, 0] += 11
    reference = -10 * torch.rand(40, 1 + negatives, generator=draw, dtype=torch.float64)
    settings = Settings(dynamic=dynamic, beta=0.7, margin=2.0)
    expected = preference_loss(policy, reference, dynamic=dynamic, beta=0.7, margin=2.0)
    assert expected.diagnostics.violation_rate < 1
    assert naive.loss(policy, reference, settings).item() == pytest.approx(expected.loss.mean().item())


def test_the_prompt_is_copied_for_each_title() -> None:
    ids, mask, scored = naive.copies(BATCH)
    assert ids.tolist() == [[5, 6, 7, 8, 9, 0], [5, 6, 7, 10, 11, 12], [5, 6, 7, 0, 0, 0]]
    assert mask.sum(dim=1).tolist() == [5, 6, 3]
    assert [row.nonzero().flatten().tolist() for row in scored] == [[3, 4], [3, 4, 5], []]


def make_policy(layers: int, targets: tuple[str, ...]) -> Policy:
    backbone = Backbone(make_model(), make_tokenizer(), "tiny", "none", shares_prompt=True)
    return Policy(backbone, LoraShape(2, 4, 0.0, targets, layers), seed=1)


def test_tokens_pairs_and_predictions_by_hand() -> None:
    """Inputs 3 + 1 + 2; pairs 6, then 3 + 1 and 2 * 3 + 3; the prompt's end and each title input predict."""
    assert floor.sizes(BATCH) == floor.Sizes(tokens=6, pairs=19, predictions=4)


def test_operations_by_hand() -> None:
    """Two layers of width 32 with 4 heads of 8, 2 key-value heads, 48 inside; rank 2 on q and v of the upper.

    Linear layers: q, o 32 x 32; k, v 32 x 16; gate, up, down 32 x 48: 7680 weights, 15360 operations a token.
    Attention: 19 pairs x 4 heads x 8 x 2 products x 2 = 2432. Head: 4 x 257 x 32 x 2 = 65792.
    Adapter: q 128 + 128, v 128 + 64 operations a token.
    Forward: 65792 + 2 (6 x 15360 + 2432) + 6 x 448 = 257664.
    Backward, upper layer only: head 65792; attention twice 2432; o, gate, up, down 6 x 11264, but not
    q, k, v, whose input needs no gradient; adapter 6 x (128 + 256 + 128 + 128): 142080.
    """
    policy = make_policy(1, ("q_proj", "v_proj"))
    assert floor.count(policy, floor.sizes(BATCH)) == {"forward": 257664, "backward": 142080}


@pytest.mark.parametrize("layers", [0, 1])
def test_the_step_does_the_products_that_are_counted(layers: int) -> None:
    """What torch counts in a step is what is needed: nothing more is done. Attention is left out."""
    policy = make_policy(layers, ("q_proj", "k_proj", "v_proj", "o_proj"))
    with FlopCounterMode(display=False) as counter:
        policy.logps(BATCH).sum().backward()
    done = counter.get_flop_counts()["Global"]
    matrix = sum(number for operation, number in done.items() if str(operation) in ("aten.mm", "aten.addmm"))
    counted = floor.count(policy, floor.sizes(BATCH))
    attention = 4 * 19 * 4 * 8
    with_gradient = 1 if layers == 1 else 2
    assert matrix == sum(counted.values()) - 2 * attention - with_gradient * 2 * attention


def test_token_passes_by_hand() -> None:
    """One row shares its pass: 6 tokens. Two rows of which one is padded to it: 12."""
    policy = make_policy(0, ("q_proj",))
    with evaluate.counted_tokens(policy.peft.get_base_model()) as passes, torch.no_grad():
        policy.logps(BATCH)
        policy.logps(TokenBatch(
            BATCH.prompt.repeat(2, 1), torch.tensor([3, 1]), BATCH.completions.repeat(2, 1, 1),
            torch.tensor([[2, 3, 0], [1, 0, 0]]),
        ))  # fmt: skip
    assert passes == [6, 12]
    with torch.no_grad():
        policy.logps(BATCH)
    assert passes == [6, 12]  # nothing is counted outside the block


def test_peak_memory_sees_what_was_there_for_a_moment() -> None:
    with common.PeakMemory() as memory:
        block = torch.ones(16_000_000)
        del block
    assert 60e6 < memory.bytes < 90e6


def test_ways_take_turns() -> None:
    calls: list[str] = []
    times = common.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ababab"
    common.interleave({"c": lambda: calls.append("c")}, 2, before={"c": lambda: calls.append("-")})
    assert "".join(calls[6:]) == "-c-c"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_median_spread_and_ratios() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    random.Random(1).shuffle(values)
    assert common.Spread.of(values) == (2.5, 1.0, 10.0)
    assert common.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == (2.0, 1.0, 3.0)


def test_the_other_benchmarks_run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "REPEATS", 2)
    assert overhead.main([*arguments, "--quick"]) == 0
    found = figures()
    assert {(part["rows"], part["negatives"]) for part in found["parts"]} >= {(64, 15), (2, 15)}
    assert found["share"]["all"] > 0
    assert evaluate.main([*arguments, "--quick"]) == 0
    found = figures()
    assert found["likelihood"]["token_passes_per_row"] > found["rows"]
    assert found["generation"]["forward_passes"] <= 20
    assert catalogue.main([*arguments, "--quick"]) == 0
    found = figures()
    assert found["users"] == 3
    assert 0 < found["nodes_best_first"] <= found["nodes"]
    assert 0 <= found["missed_by_beams"] <= 1
    assert floor.main([*arguments, "--quick"]) == 0
    found = figures()
    assert list(found) == ["bfloat16", "float32"]
    counts = found["float32"]["operations"]
    assert found["float32"]["computed"]["operations"] == 2 * counts["forward"] + counts["backward"]
    assert found["float32"]["cached"]["operations"] == counts["forward"] + counts["backward"]
    assert "step / floor" in capsys.readouterr().out


def test_the_first_step_is_seen_and_the_run_stopped(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That what is imported can be imported: below, without a process for each."""
    monkeypatch.setattr(start, "IMPORTS", {"python": "pass"})
    sizes = ["--num_candidates=6", "--num_negatives=4", "--sft_rows=4", "--dtype=float32"]
    assert start.main([*arguments, "--quick", *sizes]) == 0
    found = figures()
    assert found["command to first training step"]["median"] > found["python"]["median"] > 0


@pytest.mark.parametrize("name", start.IMPORTS)
def test_what_a_process_is_timed_with_runs(name: str) -> None:
    with suppress(SystemExit) if "--help" in name else nullcontext():
        exec(start.IMPORTS[name], {})


def test_code_that_fails_tells_why() -> None:
    with pytest.raises(RuntimeError, match=r"'1 / 0' failed(.|\n)*ZeroDivisionError"):
        start.run_code("1 / 0")()


def test_a_run_without_a_step_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "COMMAND", "import sys; sys.exit(f'wrong: {sys.argv[1:]}')")
    with pytest.raises(RuntimeError, match=r"no training step(.|\n)*wrong: \['--num_negatives=99'\]"):
        start.first_step(["--num_negatives=99"])


def test_windows_against_listed_rows(arguments: list[str]) -> None:
    """Every title of a window costs about its own tokens; a listed row shows all of its candidates."""
    assert dense.main([*arguments, "--num_candidates=20", "--quick"]) == 0
    found = figures()
    tokens, rows = found["tokens_per_row"], found["rows"]
    assert set(rows.values()) == {48, 24, 4}
    assert tokens["sft, windows"] < tokens["sft, listed"] / 5
    assert tokens["K = 1, windows"] < tokens["K = 15, windows"] < tokens["K = 15, listed"] / 3
    assert min(speed["low"] for speed in found["rows_per_second"].values()) > 0


@pytest.mark.long
def test_several_processes_against_one(arguments: list[str]) -> None:
    sizes = ["--num_candidates=6", "--num_negatives=4", "--num_clusters=2", "--rounds=1"]
    assert parallel.main([*arguments, *sizes, "--quick"]) == 0
    found = figures()
    for name in ("sft", "preference"):
        assert min(found[f"{name} rows/s"][way]["low"] for way in ("one", "several")) > 0
        assert (
            found[f"{name} exchange"]["several"]["median"] > found[f"{name} exchange"]["one"]["median"] >= 0
        )
    assert found["users/s, all titles"]["ratio"]["median"] > 0


@pytest.fixture
def no_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch trace what it is to compile, and no more, which takes a minute less."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep every line
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("no_machine_code")
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
def test_the_host_does_the_same_in_both_ways(arguments: list[str]) -> None:
    assert host.main([*arguments, "--quick"]) == 0
    found = figures()
    assert found["lora_layers"] == 14
    assert found["gradient_difference"] < 1e-5  # other operations, and no other numbers
    for line in found["times"].values():
        assert min(line["peft"]["low"], line["ours"]["low"], line["ratio"]["low"]) > 0
    assert found["times"]["forward and backward"]["compiled ratio"]["low"] > 0


@pytest.mark.usefixtures("no_machine_code")
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
def test_ways_of_the_host_that_disagree_fail(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = host.World.by

    def wrong(world: Any, way: str, work: Any) -> None:
        layers = world.policy.adapters.layers
        right = layers[0].scaling["policy"]
        for layer in layers:
            layer.scaling["policy"] = 3.0
        own(world, way, work)
        for layer in layers:
            layer.scaling["policy"] = right

    monkeypatch.setattr(host.World, "by", wrong)
    assert host.main([*arguments, "--quick"]) == 1
    assert "the ways disagree" in capsys.readouterr().err


def test_what_else_was_tried_computes_the_same(arguments: list[str]) -> None:
    assert host_tries.main(["--json", "figures.json", "--quick"]) == 0
    assert len(figures()["ways"]) == 5
    assert all(line["gradient_difference"] < 1e-5 for line in figures()["ways"].values())


def test_a_wrong_joint_product_is_told(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    forward = host_tries._Joint.forward
    wrong = staticmethod(lambda ctx, x, weight, scale, *pairs: forward(ctx, x, weight, 2 * scale, *pairs))
    monkeypatch.setattr(host_tries._Joint, "forward", wrong)
    assert host_tries.main(["--quick"]) == 1


def test_retrievers_are_measured_beside_counts(toy_settings: dict[str, Any]) -> None:
    """Each set of priors on both splits; fitted together they fit their training titles no worse than one."""
    own = {**toy_settings, "dataset": "toy", "likelihood": "catalogue", "prompt": "sequence"}
    lines = retriever.measure({**own, "show_progress": False}, ["EASE"])
    assert [(line["priors"], line["rows"]) for line in lines] == [
        (priors, rows)
        for priors in (["transitions"], ["popularity"], ["recbole:EASE"], retriever.COUNTS,
                       [*retriever.COUNTS, "recbole:EASE"])
        for rows in ("valid", "test")
    ]  # fmt: skip
    for line in lines:
        assert len(line["weights"]) == len(line["priors"])
        assert 0 <= line["hr1_of_20"] <= 1
        assert line["mrr_of_all"] <= line["found_among_200"] == 1  # of 38 titles
        assert line["nll"] > 0
