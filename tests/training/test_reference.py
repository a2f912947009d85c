"""The reference cache: what it finds again, what makes it compute anew, crashes and second writers."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_dynamicpo.host.run import run
from recbole_dynamicpo.language_model.adapter_folder import LoraShape
from recbole_dynamicpo.language_model.backbone import Backbone, backbone_fingerprint
from recbole_dynamicpo.language_model.policy import Policy
from recbole_dynamicpo.likelihoods.vocabulary import VocabularyLikelihood
from recbole_dynamicpo.scoring.batches import PromptRow
from recbole_dynamicpo.scoring.collate import Collator
from recbole_dynamicpo.scoring.prompts import Templates
from recbole_dynamicpo.scoring.scorer import Scorer
from recbole_dynamicpo.training import reference
from recbole_dynamicpo.training.reference import ReferenceCache, reference_key

from ..conftest import make_model, make_tokenizer

ROWS = 20
KEYS = [f"{index:064x}" for index in range(ROWS)]

SCORES = {"fact.backbone": "f00d", "fact.dtype": "float32", "load_in_4bit": False}

ROW = PromptRow(["Heat", "Babe", "Toy Story"], ["Alien", "Fargo"], ["Alien", "Fargo"], 0)


class Score:
    """Scores row i as (-i - 1/3, -i - 1/7), notes what it was asked for, and fails on demand.

    Args:
        fail_at: the call, counted from 1, that raises; 0 for none.
    """

    def __init__(self, fail_at: int = 0) -> None:
        self.fail_at = fail_at
        self.calls: list[list[int]] = []

    def __call__(self, indices: list[int]) -> Tensor:
        self.calls.append(indices)
        if len(self.calls) == self.fail_at:
            raise RuntimeError("the power is gone")
        return table(indices)


def table(indices: list[int]) -> Tensor:
    return torch.tensor([[-index - 1 / 3, -index - 1 / 7] for index in indices])


def silent(_: int) -> None:
    """Take no notice of progress."""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SHARD_ROWS", 6)


@pytest.fixture
def cache(tmp_path: Path) -> ReferenceCache:
    return ReferenceCache(tmp_path / "reference")


def test_a_second_pass_computes_nothing(cache: ReferenceCache) -> None:
    """20 rows in shards of 6: four calls; then all from the disk, bit for bit, also in another order."""
    first, done = Score(), []
    found, computed = cache.complete(KEYS, first, done.append)
    assert [len(call) for call in first.calls] == [6, 6, 6, 2]
    assert (computed, sum(done)) == (ROWS, ROWS)
    assert torch.equal(found, table(list(range(ROWS))))

    again = Score()
    found, computed = ReferenceCache(cache.folder).complete(KEYS[::-1], again, silent)
    assert (again.calls, computed) == ([], 0)
    assert torch.equal(found, table(list(range(ROWS)))[range(ROWS - 1, -1, -1)])


def test_only_new_rows_are_computed(cache: ReferenceCache) -> None:
    cache.complete(KEYS[:8], Score(), silent)
    score = Score()
    found, computed = cache.complete(KEYS[:10], score, silent)
    assert (score.calls, computed) == ([[8, 9]], 2)
    assert torch.equal(found, table(list(range(10))))


def test_absent_candidates_survive_the_disk(cache: ReferenceCache) -> None:
    values = torch.tensor([[-1.25, -torch.inf]])
    cache.complete(KEYS[:1], lambda _: values, silent)
    found, computed = cache.complete(KEYS[:1], Score(), silent)
    assert computed == 0
    assert torch.equal(found, values)


@pytest.mark.parametrize(
    ("scores", "adapter", "shares"),
    [
        *[({**SCORES, name: "other"}, "beef", True) for name in SCORES],
        *[(SCORES, "beee", True), (SCORES, "beef", False)],
    ],
)
def test_another_ingredient_is_another_folder(scores: dict[str, Any], adapter: str, shares: bool) -> None:
    key = reference_key(SCORES, "beef", shares_prompt=True)
    assert reference_key(dict(SCORES), "beef", shares_prompt=True) == key
    assert reference_key(scores, adapter, shares_prompt=shares) != key
    assert len(key) == 24
    assert set(key) <= set("0123456789abcdef")


def test_another_backbone_has_another_fingerprint(tiny_backbone: Path, tmp_path: Path) -> None:
    """One flipped bit of one weight, or another configuration of the same weights."""
    known = backbone_fingerprint(str(tiny_backbone), "tiny")
    for name in ("model.safetensors", "config.json"):
        copy = shutil.copytree(tiny_backbone, tmp_path / name)
        assert backbone_fingerprint(str(copy), "tiny") == known
        content = bytearray((copy / name).read_bytes())
        content[-10] ^= 1
        (copy / name).write_bytes(content)
        assert backbone_fingerprint(str(copy), "tiny") != known


def test_another_adapter_has_another_digest() -> None:
    def policy(alpha: float = 8) -> Policy:
        backbone = Backbone(make_model(), make_tokenizer(), "tiny", "none", shares_prompt=True)
        return Policy(backbone, LoraShape(2, alpha, 0.0, ("q_proj",), 0), seed=1)

    known = policy().digest()
    assert policy().digest() == known
    assert policy(alpha=9).digest() != known
    other = policy()
    with torch.no_grad():
        other.trainable()[-1][0, 0] += 1e-6
    assert other.digest() != known


@pytest.mark.parametrize(
    ("row", "limits"),
    [
        (ROW._replace(history=["Heat", "Babe", "Toy Stor"]), {}),
        (ROW._replace(history=["Babe", "Heat", "Toy Story"]), {}),
        (ROW._replace(candidates=["Fargo", "Alien"]), {}),
        (ROW._replace(completions=["Fargo", "Alien"]), {}),
        (ROW._replace(completions=["Alien"]), {}),
        (ROW._replace(template=1), {}),
        (ROW, {"max_history": 2}),
        (ROW, {"max_length": 50}),
    ],
)
def test_another_text_is_another_row(row: PromptRow, limits: dict[str, int]) -> None:
    templates = Templates(["Liked: {history:, }. Among {candidates:, }:", "{history:; } of {candidates:; }:"])

    def key(row: PromptRow, max_history: int = 3, max_length: int = 100) -> str:
        collator = Collator(make_tokenizer(), templates, max_length=max_length, max_history=max_history)
        data: Any = SimpleNamespace(prompt_rows=lambda rows, items: [row])
        none: Any = None
        (found,) = VocabularyLikelihood(data, none, collator, none).keys(none, none)
        return found

    assert key(ROW) == key(ROW._replace(history=list(ROW.history)))
    assert key(ROW) == key(ROW, max_length=99)  # nothing is cut, so the tokens are the same
    assert key(row, **limits) != key(ROW)


def test_after_a_crash_only_the_rest_is_computed(cache: ReferenceCache) -> None:
    """The third of four shards fails: the twelve rows of the first two are safe."""
    with pytest.raises(RuntimeError, match="power"):
        cache.complete(KEYS, Score(fail_at=3), silent)
    score = Score()
    found, computed = cache.complete(KEYS, score, silent)
    assert score.calls == [list(range(12, 18)), [18, 19]]
    assert computed == 8
    assert torch.equal(found, table(list(range(ROWS))))


@pytest.mark.parametrize("damage", ["half", "empty", "list", "text", "binary"])
def test_a_damaged_shard_costs_its_own_rows_only(
    damage: str, cache: ReferenceCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.complete(KEYS, Score(), silent)
    shard = next(path for path in cache.folder.glob("*.json") if KEYS[7] in path.read_text())
    whole = shard.read_bytes()
    content = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "list": b"[1, 2]",
        "text": b'{"%s": "none"}' % KEYS[7].encode(),
        "binary": b"\xff\xfe\x00",
    }
    shard.write_bytes(content[damage])
    score = Score()
    with caplog.at_level(logging.WARNING):
        found, computed = cache.complete(KEYS, score, silent)
    assert (score.calls, computed) == ([list(range(6, 12))], 6)
    assert f"{shard}: not a readable cache shard" in caplog.text
    assert torch.equal(found, table(list(range(ROWS))))
    assert shard.read_bytes() == whole  # named by its content, so it is written again in its place


def test_what_a_killed_writer_leaves_is_never_read(cache: ReferenceCache) -> None:
    """A shard under its temporary name, whole or not, does not count."""
    cache.complete(KEYS, Score(), silent)
    for path in cache.folder.glob("*.json"):
        path.rename(path.with_name(f".{path.name}.x7.tmp"))
    assert cache.complete(KEYS, Score(), silent)[1] == ROWS


def _write(folder: Path, rows: int, barrier: Any, results: Any) -> None:
    """Complete the cache in shards of ``rows`` rows, once the other process has found it empty too."""
    reference.SHARD_ROWS = rows
    score = Score()

    def together(indices: list[int]) -> Tensor:
        if not score.calls:
            barrier.wait(timeout=60)
        return score(indices)

    found, computed = ReferenceCache(folder).complete(KEYS, together, silent)
    results.put((found.tolist(), computed))


def test_two_processes_at_once(cache: ReferenceCache, caplog: pytest.LogCaptureFixture) -> None:
    """Both compute all rows, in shards that overlap; then everything is there, whole and the same."""
    context = multiprocessing.get_context("fork")  # has all imports already
    barrier, results = context.Barrier(2), context.Queue()
    writers = [context.Process(target=_write, args=(cache.folder, rows, barrier, results)) for rows in (3, 4)]
    for writer in writers:
        writer.start()
    found = [results.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert found == [(table(list(range(ROWS))).tolist(), ROWS)] * 2
    assert len(list(cache.folder.glob("*.json"))) == 7 + 5  # 20 rows by 3 and by 4
    assert len(list(cache.folder.iterdir())) == 12

    score = Score()
    stored, computed = cache.complete(KEYS, score, silent)
    assert (score.calls, computed, caplog.text) == ([], 0, "")
    assert torch.equal(stored, table(list(range(ROWS))))


def test_reuse_across_k_objectives_epochs_and_reruns(
    toy_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates of a row are stored, so only another reference or other prompts are computed."""
    score, scored = Scorer.in_voices, []

    def counted(self: Scorer, rows: Any, voices: Any) -> dict[str, Tensor]:
        if "reference" in voices and len(rows) > 1:  # one row is that of the final evaluation
            scored.append(len(rows))
        return score(self, rows, voices)

    monkeypatch.setattr(Scorer, "in_voices", counted)
    settings = {**toy_settings, "compare_stages": False, "eval_rows": 1}

    def computed(**changes: Any) -> int:
        scored.clear()
        run("DynamicPO", "toy", overrides={**settings, **changes})
        return sum(scored)

    assert computed() == 12
    assert computed() == 0
    assert computed(num_negatives=2) == 0
    assert computed(objective="sdpo", dynamic=False, beta=0.1) == 0
    assert computed(epochs=2, learning_rate=0.001, train_batch_size=3) == 0
    assert computed(preference_rows=14) == 2
    assert computed(max_history=3) == 12  # other prompts, and so another SFT adapter too
    assert computed(sft_learning_rate=0.02) == 12
