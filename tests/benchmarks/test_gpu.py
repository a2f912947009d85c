"""The script for a GPU: a dry run of all parts on a CPU, what it comes to, and what it says it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from recbole_dynamicpo.language_model.packed import block_mask, pack
from recbole_dynamicpo.language_model.tree import tree_mask
from recbole_dynamicpo.title_trie.title_layout import lay_out
from recbole_dynamicpo.title_trie.trunk import pack_whole

from ..conftest import small_settings, write_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_attention  # noqa: E402
import gpu_job  # noqa: E402
import gpu_report  # noqa: E402
from gpu_world import World  # noqa: E402


def test_all_parts_run_dry_without_recbole(tmp_path: Path) -> None:
    """On tiny shapes; what a CPU lacks is said."""
    report, page = tmp_path / "report.json", tmp_path / "report.md"
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); place = sys.argv[2]; "
        "absent = ['recbole', 'mlflow', 'prefect', 'pydantic', 'scipy', 'pandas', 'pyarrow', 'matplotlib']; "
        "sys.modules.update(dict.fromkeys(absent)); "  # so that none of them can be imported
        "import functools, torch; "  # machine code would take a minute more
        "torch.compile = functools.partial(torch.compile, backend='aot_eager'); "
        "sys.argv = [place, '--shapes', 'tiny', '--json', sys.argv[3], '--markdown', sys.argv[4]]; "
        "kept = {}\n"
        "try: runpy.run_path(place, run_name='__main__')\n"
        "except SystemExit as end: kept['status'] = end.code\n"
        "raise SystemExit(kept['status'])"
    )
    files = [str(BENCHMARKS), str(BENCHMARKS / "gpu.py"), str(report), str(page)]
    done = subprocess.run(
        [sys.executable, "-c", code, *files],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    written = json.loads(report.read_text())
    found = {key.removeprefix("tiny float32 "): value for key, value in written.items()}
    assert set(gpu.PARTS) < set(found)
    assert found["correctness"]["holds"]
    assert len(found["correctness"]["differences"]) == 7
    assert max(found["correctness"]["differences"].values()) < 1e-4
    assert found["correctness"]["gradient, of its norm"] < 1e-4
    for name in ("K = 1", "K = 15"):
        assert found["step"][name]["loss_difference"] < 1e-4
        assert found["step"][name]["naive_rows_at_once"] == 2
    assert found["ranking"]["titles"] == 30
    assert found["use"]["training_of_peak"] > 0
    assert found["resume"]["same_bits"]
    assert (found["resume"]["killed_after"], found["resume"]["gone_on_from"]) == (5, 4)
    assert found["memory"]["lacked"] == found["gaps"]["lacked"] == found["job"]["lacked"] == "a GPU"
    assert found["compiled"]["holds"]
    assert found["compiled"]["loss_difference"] < 1e-5
    for line in (found["attention"]["rows, K = 15"], found["attention"]["a whole catalogue"]):
        assert line["difference"] < 1e-5
    assert found["attention"]["lacked"].startswith("a GPU")
    assert found["four_bits"]["lacked"].startswith("a GPU")
    assert "main experiment, hours" not in found  # of the paper's sizes alone
    text = page.read_text()
    assert all(f"## tiny float32 {part}" in text for part in gpu.PARTS)
    assert "| K = 15, loss_difference |" in text


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("tiny", torch.float32, "cpu", quick=True)
    compiler = torch.compile

    def lacking(graph: Any, inputs: Any) -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda forward, **more: compiler(forward, backend=lacking, **more))
    found = gpu.compiled(world)
    assert "torch cannot compile here" in found["lacked"]
    assert "holds" not in found
    assert gpu.compiled(world)["plain_s"] > 0  # the layers are as they were


class Large:
    """Stands for a model of which nothing is built."""

    name, quick = "llama2-7b", False


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were asked for."""
    names: list[str] = []
    monkeypatch.setattr(gpu, "World", lambda name, *rest, **more: names.append(name) or Large())
    return names


def test_a_part_that_would_not_end_in_time_is_left_out(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so are models for which no time is left; nothing of them is built."""
    run = gpu.Run(30, gpu_report.Recipe())
    monkeypatch.setitem(gpu.PARTS, "use", gpu.Part(lambda world: {"figure": 1}, 10))
    run.model("llama2-7b", "bfloat16", ["four_bits", "use"])
    assert run.report["llama2-7b bfloat16 four_bits"]["skipped"].endswith("some 40 s are wanted")
    assert run.report["llama2-7b bfloat16 use"]["figure"] == 1
    run.ends -= 25
    run.model("qwen2.5-7b", "bfloat16", ["use"])
    assert run.report["qwen2.5-7b bfloat16"]["skipped"].endswith("s are left")
    assert made == ["llama2-7b"]
    assert not run.wrong


def test_a_part_that_fails_does_not_take_the_others_along(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found before it is written already."""
    report = tmp_path / "report.json"
    run = gpu.Run(600, gpu_report.Recipe(), report)
    seen: list[int] = []

    def short(world: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nand failed")

    def broken(world: Any) -> dict[str, Any]:
        seen.append(len(json.loads(report.read_text())))
        raise RuntimeError("no such kernel")

    for name, work in (("use", short), ("gaps", broken), ("memory", lambda world: {"figure": 1})):
        monkeypatch.setitem(gpu.PARTS, name, gpu.Part(work, 1))
    run.model("llama2-7b", "bfloat16", ["use", "gaps", "memory"])
    found = json.loads(report.read_text())
    assert found["llama2-7b bfloat16 use"]["lacked"] == "memory: CUDA out of memory. Tried"
    assert found["llama2-7b bfloat16 gaps"]["error"] == "RuntimeError: no such kernel"
    assert found["llama2-7b bfloat16 memory"]["figure"] == 1
    assert seen[0] < len(found)
    assert run.wrong


def test_the_main_experiment_is_projected_from_a_large_model(
    made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {name: {"tokens": 800, "ours_s": 1.2, "cached_s": 0.8} for name in ("K = 1", "K = 15")}
    monkeypatch.setitem(gpu.PARTS, "step", gpu.Part(lambda world: step, 1))
    run = gpu.Run(600, gpu_report.Recipe(rows=900))
    run.model("llama2-7b", "bfloat16", ["step"])
    # 8 rows a step: .1 s a row in 5 epochs of SFT and 3 of DynamicPO, .05 s for its reference.
    hours = run.report["llama2-7b bfloat16 main experiment, hours"]
    assert hours["hours_by_steps"] == pytest.approx(900 * 0.85 / 3600)


def test_what_decides_most_comes_first() -> None:
    every = list(gpu.PARTS)
    found = gpu.plan(["smollm2-135m", "llama2-7b"], every, "cuda")
    each = [part for part in every if part not in ("resume", "job")]
    assert found == [
        ("smollm2-135m", "float32", ["correctness"]),
        ("smollm2-135m", "bfloat16", each),
        ("llama2-7b", "bfloat16", each),
        ("smollm2-135m", "float32", ["resume", "job"]),
    ]
    assert gpu.plan(["tiny"], every, "cpu") == [
        ("tiny", "float32", each),
        ("tiny", "float32", ["resume", "job"]),
    ]
    assert gpu.plan(["llama2-7b"], ["job"], "cuda")[-1] == ("llama2-7b", "bfloat16", ["job"])


@pytest.mark.parametrize("wrong", ["mask", "gradient"])
def test_what_is_wrong_is_told(  # a wrong mask is found before, by the probe of what a model can do
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if wrong == "gradient":
        logps = gpu.separate_logps
        monkeypatch.setattr(gpu, "separate_logps", lambda *a, **k: logps(*a, **k) + _extra(logps(*a, **k)))
    else:
        from recbole_dynamicpo.language_model import logps as module

        monkeypatch.setattr(module, "block_mask", lambda segment: torch.ones(1, 1, 1, 1).bool().expand(
            len(segment), 1, segment.shape[1], segment.shape[1]).tril())  # fmt: skip
    report = ["--json", str(tmp_path / "report.json")]
    assert gpu.main(["--shapes", "tiny", "--parts", "correctness", *report]) == 1
    assert '"holds": false' in capsys.readouterr().out


def _extra(value: torch.Tensor) -> torch.Tensor:
    """Return nothing, with a gradient."""
    return 0.5 * (value - value.detach())


def test_the_main_experiment_by_hand() -> None:
    """1,000 rows; steps of 8 rows: K = 1 takes .8 s, K = 15 1.6 s, and 2.4 s with its reference."""
    step = {
        "K = 1": {"tokens": 800, "ours_s": 1.2, "cached_s": 0.8},
        "K = 15": {"tokens": 1600, "ours_s": 2.4, "cached_s": 1.6},
    }
    row = gpu_report.from_steps(step, 8)
    assert row == pytest.approx((0.1, 0.1, 0.2))
    recipe = gpu_report.Recipe(rows=1000, sft_epochs=5, epochs=3)
    # 5 x 100 s of SFT, 100 s of reference, 3 x 200 s of DynamicPO.
    assert gpu_report.hours(row, recipe) == pytest.approx(1200 / 3600)
    # 2,000 tokens a second: .05 s for the 100 of SFT, .1 s for the 200 of DynamicPO, half for a reference.
    use = {"tokens_per_second": 2000.0}
    assert gpu_report.from_use(use, step, 8) == pytest.approx((0.05, 0.05, 0.1))
    found = gpu_report.projected({"step": step, "use": use}, 8, recipe)
    assert found["hours_by_steps"] == pytest.approx(1 / 3)
    assert found["hours_by_use"] == pytest.approx((250 + 50 + 300) / 3600)
    assert "hours_by_use" not in gpu_report.projected({"step": step}, 8, recipe)
    assert gpu_report.projected({"use": use}, 8, recipe) == {"lacked": "part step at K = 1 and K = 15"}


def test_the_recipe_is_the_papers() -> None:
    import yaml

    settings = yaml.safe_load((BENCHMARKS.parent / "properties" / "paper.yaml").read_text())
    recipe = gpu_report.Recipe()
    assert (recipe.sft_epochs, recipe.epochs) == (settings["sft_epochs"], settings["epochs"])


def test_the_other_way_takes_fewer_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("tiny", torch.float32, "cpu", quick=True)
    batch, logps = world.batch(4, 3), gpu.naive.logps
    whole = gpu._naive(world, gpu.naive.second_model(world.policy), batch)

    def scarce(model: Any, part: Any, device: str) -> torch.Tensor:
        if len(part.prompt) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logps(model, part, device)

    monkeypatch.setattr(gpu.naive, "logps", scarce)
    found = gpu._naive(world, gpu.naive.second_model(world.policy), batch)
    assert (whole["naive_rows_at_once"], found["naive_rows_at_once"]) == (4, 1)
    assert found["naive_loss"] == pytest.approx(whole["naive_loss"], rel=1e-5)
    monkeypatch.setattr(gpu.naive, "logps", lambda *rest: _no_memory())
    assert gpu._naive(world, None, batch) == {"lacked": "memory for the naive step"}


def _no_memory() -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.long
def test_the_default_job_is_killed_and_goes_on(tmp_path: Path, tiny_backbone: Path) -> None:
    """The same on the toy world; every step is in the journal once."""
    settings = small_settings(write_dataset(tmp_path / "dataset"), tiny_backbone)
    settings |= {
        "sft_epochs": 30,
        "stopping_step": 99,
        "compare_stages": False,
        "eval_rows": 4,
        "mlflow_tracking_uri": "none",
    }
    settings.pop("show_progress")
    flags = [f"--{key}={value}" for key, value in settings.items()]
    found = gpu_job.job(["--dataset=toy", *flags], 300)
    assert found["holds"], found["said"]
    assert found["steps"] == 30 * 3 + 3
    assert 2 <= found["killed_after_steps"] < found["steps"]
    late = gpu_job.job(["--dataset=toy", *flags], 0.01)
    assert late["lacked"].startswith("time: ")


def test_one_way_to_say_both_masks() -> None:
    """For every pair of places but padding's, which nobody reads, of rows with titles and of token trees."""
    world = World("tiny", torch.float32, "cpu", quick=True)
    batch = world.batch(4, 5)
    batch = batch._replace(prompt_length=torch.tensor([12, 1, 7, 3]))
    batch.completion_length[1, 2] = 0
    packed = pack(batch)
    whole = pack_whole(world.prompts(2), lay_out(world.trie(), np.arange(30)[None]))
    place = torch.arange(whole.end.shape[1])
    everywhere = torch.ones(whole.end.shape, dtype=torch.bool)
    cases = [
        (gpu_attention.ends(packed.segment), block_mask(packed.segment), packed.segment >= 0),
        (whole.end, tree_mask(place, place, whole.end)[:, None], everywhere),
    ]
    for end, mask, present in cases:
        longer = gpu_attention.padded(end)
        width, asked, size = longer.shape[1], gpu_attention.visible(longer), end.shape[1]
        assert width % gpu_attention.BUCKET == 0
        places = torch.arange(width)
        row, query, key = torch.meshgrid(torch.arange(len(end)), places, places, indexing="ij")
        found = asked(row, torch.tensor(0), query, key)
        assert torch.equal(found[:, :size, :size][present], mask[:, 0][present])
        padding = ~torch.cat([present, torch.zeros(len(end), width - size, dtype=torch.bool)], dim=1)
        assert torch.equal(found[padding], torch.eye(width, dtype=torch.bool).expand_as(found)[padding])
