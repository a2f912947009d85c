"""Objectives and diagnostics: numbers by hand, then the scalar oracle on random rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_dynamicpo.errors import SettingsError
from recbole_dynamicpo.names import OBJECTIVES
from recbole_dynamicpo.objectives.boundary import find_boundary
from recbole_dynamicpo.objectives.losses import dmpo_loss, mppo_loss, sdpo_loss, sft_loss
from recbole_dynamicpo.objectives.preference import PreferenceLoss, preference_loss
from recbole_dynamicpo.objectives.strategies import Objective, RecPO, SimPO

from ..helpers.made_extras import made_extras
from ..helpers.oracle import expect, expect_margins, golden_cases, softplus

LOGPS = st.integers(-160, 0).map(lambda n: n / 8)
PAIRS = st.lists(st.tuples(LOGPS, LOGPS), min_size=2, max_size=8)  # (policy, reference), positive first

# lp_w = -1 against -2 and -4; reference -1.5, -2, -3; so r_w = 1/2 and r = 0, -1.
POLICY = torch.tensor([[-1.0, -2.0, -4.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-1.5, -2.0, -3.0]], dtype=torch.float64)
# phi_w / phi_i of made extras: 5 after 3 days, against 3 after 10, which stand for never.
RATED = (5 / math.sqrt(1 + 3)) / (3 / math.sqrt(1 + 10))
P_W, P_1, P_2 = math.exp(-1), math.exp(-2), math.exp(-4)


def one_row(pairs: list[tuple[float, float]], **options: Any) -> PreferenceLoss:
    """Return the result for one row of (policy, reference) pairs, in float64."""
    policy, reference = torch.tensor([pairs], dtype=torch.float64).unbind(dim=2)
    return preference_loss(policy, reference, **options)


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        ("dmpo", math.log1p(math.exp(-2.0))),
        ("sdpo", math.log1p(math.exp(-1.0) + math.exp(-3.0))),
        ("mppo", math.log1p(math.exp(-2 * (2 * P_W - P_1 - P_2)))),
        ("listwise", math.log1p(math.exp(-2.0) + math.exp(-6.0))),
        ("recpo", math.log1p(math.exp(RATED - 1.0) + math.exp(RATED - 3.0))),
        ("simpo", math.log1p(math.exp(1.0 - 3.0) + math.exp(1.0 - 1.0))),
    ],
)
def test_plain_by_hand(objective: str, wanted: float) -> None:
    """beta0 = 2, gaps r_w - r_i = 1/2 and 3/2.

    DMPO: mean of 2 * 1/2 and 2 * 3/2 is 2; -log sigma(2) = log(1 + e^-2).
    S-DPO: the sum of exp(-1) and exp(-3) is s; -log sigma(-log s) = log(1 + s).
    MPPO: 2 (2 p_w - p_1 - p_2), no reference. List-wise: gaps of lp 1 and 3, no reference.
    RecPO: S-DPO with the margin 5 / (1 + 3)^0.5 over 3 / (1 + 10)^0.5 at each negative.
    SimPO: by lengths 2, 1 and 4 lp is -1/2, -2 and -1, with gaps 3/2 and 1/2; margin 1.
    """
    extras = made_extras(POLICY)
    found = preference_loss(POLICY, REFERENCE, objective=objective, dynamic=False, beta=2.0, extras=extras)
    assert found.loss.tolist() == [pytest.approx(wanted, rel=1e-14)]
    assert found.beta.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_dynamic_by_hand(objective: str) -> None:
    """No negative reaches -1; two groups make the boundary {-2} and the rest {-4}.

    d1 = 1, d2 = 2, margin 1: beta_1 = 2 (1 + tanh((1 - 2 - 1) / 3) / 2). With one negative DMPO and
    S-DPO are both -log sigma(beta_1 (1/2 - 0)), MPPO is -log sigma(beta_1 (p_w - p_1)), list-wise that of lp,
    SimPO of lp by length; RecPO and SimPO have margins.
    """
    beta = 2 * (1 + 0.5 * math.tanh(-2 / 3))
    gap = {"mppo": P_W - P_1, "listwise": 1.0, "simpo": 1.5}.get(objective, 0.5)
    wanted = math.log1p(math.exp(-beta * gap + {"recpo": RATED, "simpo": 1.0}.get(objective, 0.0)))
    options: dict[str, Any] = {"beta": 2.0, "margin": 1.0, "clusters": 2, "extras": made_extras(POLICY)}
    found = preference_loss(POLICY, REFERENCE, objective=objective, **options)
    assert found.loss.tolist() == [pytest.approx(wanted, rel=1e-14)]
    assert found.boundary.tolist() == [[True, False]]
    assert found.beta.tolist() == [[pytest.approx(beta, rel=1e-14), 0.0]]


@settings(max_examples=25, deadline=None)
@given(PAIRS, st.sampled_from([0.1, 1.0, 2.5]), st.sampled_from([-2.0, 0.0, 2.0, 6.0]), st.integers(1, 4))
def test_every_form_equals_the_oracle(
    pairs: list[tuple[float, float]], beta: float, margin: float, clusters: int
) -> None:
    policy, reference = zip(*pairs, strict=True)
    wanted = expect(
        policy[0], policy[1:], reference[0], reference[1:], beta=beta, margin=margin, clusters=clusters
    )
    for name, value in wanted.losses.items():
        objective, _, dynamic = name.partition("+")
        options = {"beta": beta, "margin": margin, "clusters": clusters}
        found = one_row(pairs, objective=objective, dynamic=bool(dynamic), **options)
        assert found.loss.item() == pytest.approx(value, rel=1e-9), name
        assert found.boundary[0].nonzero().flatten().tolist() == wanted.boundary


RATINGS = st.sampled_from([1.0, 2.0, 3.5, 5.0])
DAYS = st.sampled_from([0.0, 0.25, 3.0, 10.0, 400.0, math.inf])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(LOGPS, LOGPS, RATINGS, DAYS, st.integers(1, 9)), min_size=2, max_size=8), st.data())
def test_margins_of_ratings_times_and_lengths_equal_the_oracle(
    columns: list[tuple[float, float, float, float, int]], data: st.DataObject
) -> None:
    """RecPO and SimPO, plain and with boundary and betas: values and gradients."""
    beta, factor = data.draw(st.sampled_from([0.1, 1.0, 2.5])), data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    form = {"beta": beta, "margin": data.draw(st.sampled_from([-2.0, 6.0])), "clusters": 2}
    policy, reference, *more = (
        torch.tensor([row], dtype=torch.float64) for row in zip(*columns, strict=True)
    )
    extras = dict(zip(("ratings", "times", "lengths"), more, strict=True))
    for dynamic in (False, True):
        wanted = expect_margins(columns, dynamic=dynamic, factor=factor, **form)
        for objective in (RecPO(factor), SimPO(factor)):
            logps = policy.clone().requires_grad_()
            found = preference_loss(
                logps, reference, objective=objective, dynamic=dynamic, extras=extras, **form
            )
            found.loss.sum().backward()
            loss, gradient = wanted[type(objective).__name__]
            assert found.loss.item() == pytest.approx(loss, rel=1e-9)
            assert logps.grad.tolist() == [
                pytest.approx(gradient, rel=5e-9, abs=1e-12)
            ]  # softplus is x from 20 on


@settings(max_examples=20, deadline=None)
@given(PAIRS, st.booleans(), RATINGS, DAYS)
def test_no_margin_is_sdpo_to_the_last_bit(
    pairs: list[tuple[float, float]], dynamic: bool, rating: float, days: float
) -> None:
    policy, reference = torch.tensor([pairs], dtype=torch.float64).unbind(dim=2)
    extras = {
        "ratings": torch.full_like(policy, 3.0).index_fill(1, torch.tensor([0]), rating),
        "times": torch.full_like(policy, torch.inf).index_fill(1, torch.tensor([0]), days),
        "lengths": torch.ones_like(policy),
    }
    results = []
    forms: list[tuple[str | Objective, Tensor | None]] = [("sdpo", reference), (RecPO(0.0), reference)]
    for objective, known in (*forms, ("listwise", None), (SimPO(0.0), None)):
        logps = policy.clone().requires_grad_()
        found = preference_loss(logps, known, objective=objective, dynamic=dynamic, extras=extras)
        found.loss.sum().backward()
        results.append((found.loss.tolist(), logps.grad.tolist()))
    assert results[0] == results[1]
    assert results[2] == results[3]


if golden_cases():  # worked cases of one's own, named by an environment variable

    @pytest.mark.parametrize("case", golden_cases())
    def test_golden_losses(case: dict[str, Any]) -> None:
        """Both the package and the oracle agree with the worked cases."""
        options = {name: case[name] for name in ("beta", "margin", "clusters")}
        names = ("positive", "negatives", "positive_ref", "negatives_ref")
        oracle = expect(*(case[name] for name in names), **options)
        assert oracle.boundary == case["boundary"]
        assert oracle.betas == pytest.approx(case["betas"], rel=1e-9)
        assert oracle.losses == pytest.approx(case["expected"], rel=1e-9)
        policy = torch.tensor([[case["positive"], *case["negatives"]]], dtype=torch.float64)
        reference = torch.tensor([[case["positive_ref"], *case["negatives_ref"]]], dtype=torch.float64)
        for name, wanted in case["expected"].items():
            objective, _, dynamic = name.partition("+")
            found = preference_loss(policy, reference, objective=objective, dynamic=bool(dynamic), **options)
            assert found.loss.item() == pytest.approx(wanted, rel=1e-9), name


@pytest.mark.parametrize("objective", ["dmpo", "sdpo"])
@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.25, 7.0])
def test_one_negative_is_dpo(objective: str, gap: float) -> None:
    """DPO: -log sigma(beta (r_w - r_l)), here with beta = 0.5 and r_w - r_l = gap."""
    pairs = [(-2.0 + gap, -1.0), (-3.0, -2.0)]
    found = one_row(pairs, objective=objective, dynamic=False, beta=0.5)
    assert found.loss.item() == pytest.approx(softplus(-0.5 * gap), rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e3, -1e3, 1e4, -1e4])
def test_huge_gaps_stay_finite(objective: str, dynamic: bool, dtype: torch.dtype, gap: float) -> None:
    policy = torch.tensor([[-5.0 + min(gap, 0), -5.0 - max(gap, 0), -9.0]], dtype=dtype, requires_grad=True)
    reference = torch.tensor([[-5.0, -5.0, -9.0]], dtype=dtype)
    extras = made_extras(policy)
    found = preference_loss(policy, reference, objective=objective, dynamic=dynamic, extras=extras)
    found.loss.sum().backward()
    assert torch.isfinite(found.loss).all()
    assert torch.isfinite(policy.grad).all()
    assert all(torch.isfinite(value).all() for value in found.diagnostics)


def test_sdpo_at_a_huge_gap_by_hand() -> None:
    """r_i - r_w = 1000 with K = 1: the loss is 1000 (+ e^-1000) and pushes with full weight -1, +1."""
    policy = torch.tensor([[-1000.0, 0.0]], requires_grad=True)
    loss = preference_loss(policy, torch.zeros(1, 2), objective="sdpo", dynamic=False).loss
    loss.sum().backward()
    assert loss.tolist() == [1000.0]
    assert policy.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_plain_gradient(objective: str) -> None:
    policy = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-2.0, -1.5, -4.0, -2.5]], dtype=torch.float64)
    reference = policy.flip(1) * 0.9
    mask = torch.tensor([[True, True, True], [True, False, True]])

    def loss(policy: Tensor, reference: Tensor) -> Tensor:
        options: dict[str, Any] = {"beta": 0.8, "mask": mask, "extras": made_extras(policy)}
        return preference_loss(policy, reference, objective=objective, dynamic=False, **options).loss

    policy.requires_grad_()
    assert torch.autograd.gradcheck(loss, (policy, reference.requires_grad_()))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_dynamic_gradient_with_boundary_and_beta_held_fixed(objective: str) -> None:
    """The strengths are constants of the gradient: preference_loss gives the gradient of the fixed form."""
    policy = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.5, -4.0, -2.5]], dtype=torch.float64)
    reference = policy.flip(1) * 0.9
    mask = torch.ones(2, 3, dtype=torch.bool)
    fixed = find_boundary(policy[:, 0], policy[:, 1:], mask, beta=0.8, margin=2.0, clusters=2)

    extras = made_extras(policy)
    margin = {"recpo": RATED, "simpo": 1.0}.get(objective, 0.0)

    def loss(policy: Tensor) -> Tensor:
        plain = {"mppo": policy.exp(), "listwise": policy, "simpo": policy / extras["lengths"]}
        values = plain.get(objective, policy - reference)
        if objective == "mppo":
            return mppo_loss(values[:, 0], values[:, 1:], fixed.beta)
        if objective == "dmpo":
            return dmpo_loss(values[:, 0], values[:, 1:], fixed.beta, fixed.members)
        return sdpo_loss(values[:, 0], values[:, 1:], fixed.beta, fixed.members, margin)

    policy.requires_grad_()
    assert torch.autograd.gradcheck(loss, (policy,))
    options: dict[str, Any] = {"beta": 0.8, "margin": 2.0, "clusters": 2, "extras": extras}
    found = preference_loss(policy, reference, objective=objective, **options)
    (wanted,) = torch.autograd.grad(loss(policy).sum(), policy)
    (actual,) = torch.autograd.grad(found.loss.sum(), policy)
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=0)
    assert not found.beta.requires_grad
    assert not any(value.requires_grad for value in found.diagnostics)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("garbage", "garbage_ref"),
    [(0.0, 0.0), (0.0, -math.inf), (-math.inf, -math.inf), (1e4, 3.0), (-1e4, 7.0)],
)
def test_masked_negatives_do_not_matter(
    objective: str, dynamic: bool, garbage: float, garbage_ref: float
) -> None:
    """An absent candidate has log-probability 0 under the policy and may have -inf in a score table."""
    policy = torch.tensor([[-1.0, garbage, -2.0, -0.5, garbage]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.5, garbage_ref, -2.5, -1.0, garbage_ref]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False]])
    options: dict[str, Any] = {"objective": objective, "dynamic": dynamic, "clusters": 2}
    extras, absent = made_extras(policy), torch.tensor([False, True, False, False, True])
    spoilt = {name: values.masked_fill(absent, garbage_ref) for name, values in extras.items()}
    found = preference_loss(policy, reference, mask=mask, extras=spoilt, **options)
    found.loss.sum().backward()
    short = policy.detach()[:, [0, 2, 3]].requires_grad_()
    kept = {name: values[:, [0, 2, 3]] for name, values in extras.items()}
    wanted = preference_loss(short, reference[:, [0, 2, 3]], extras=kept, **options)
    wanted.loss.sum().backward()
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(policy.grad[:, [0, 2, 3]], short.grad, rtol=1e-12, atol=0)
    assert policy.grad[0, [1, 4]].tolist() == [0.0, 0.0]
    assert found.boundary[0].tolist() == [False, *wanted.boundary[0].tolist(), False]
    assert found.beta[0].tolist() == [0.0, *wanted.beta[0].tolist(), 0.0]
    for name, value in found.diagnostics._asdict().items():
        assert value.item() == pytest.approx(getattr(wanted.diagnostics, name).item(), rel=1e-12), name


def test_diagnostics_by_hand() -> None:
    """Three rows, beta0 = 2, two groups, K = 2 (rewards are 2 r).

    Row 1: lp -1 | -2, -4; r 1/2 | 0, -1: wins; no violation; boundary {-2}; margin 1 - mean(0, -2) = 2.
    Row 2: lp -3 | -3, -5; r 1 | 1, 0: a tie is no win; one violation of two; margin 2 - 1 = 1.
    Row 3: lp -3 | -1, -2; r 0 | 1, 2: loses; two violations of two; margin 0 - 3 = -3.
    So win rate 1/3, mean margin 0, violation rate 2/3, violation share (0 + 1/2 + 1) / 3,
    size (1 + 1 + 2) / 3.
    """
    policy = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -3.0, -5.0], [-3.0, -1.0, -2.0]], dtype=torch.float64)
    ratio = torch.tensor([[0.5, 0.0, -1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    found = preference_loss(policy, policy - ratio, dynamic=False, beta=2.0, margin=1.0, clusters=2)
    told = found.diagnostics
    assert told.reward_win_rate.item() == pytest.approx(1 / 3)
    assert told.reward_margin.item() == pytest.approx(0.0, abs=1e-12)
    assert told.violation_rate.item() == pytest.approx(2 / 3)
    assert told.violation_share.item() == pytest.approx(0.5)
    assert told.boundary_size.item() == pytest.approx(4 / 3)
    assert told.boundary_gradient_share.item() == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert told.violation_gradient_share.item() == pytest.approx((0 + 1 / 2 + 1) / 3)


def test_beta_diagnostics_cover_the_boundary_sets_only() -> None:
    """Row of test_dynamic_by_hand (ratio -2/3), and a row with two violations without a rest.

    Second row: lp_w = -3, negatives -1, -2, margin 1: ratios -1.4 and -1 (see test_boundary).
    """
    policy = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -1.0, -2.0]], dtype=torch.float64)
    told = preference_loss(policy, policy, beta=2.0, margin=1.0, clusters=2, dynamic=False).diagnostics
    betas = [2 * (1 + 0.5 * math.tanh(ratio)) for ratio in (-2 / 3, -1.4, -1.0)]
    assert told.beta_mean.item() == pytest.approx(sum(betas) / 3)
    assert told.beta_min.item() == pytest.approx(min(betas))
    assert told.beta_max.item() == pytest.approx(max(betas))


def test_rewards_without_a_reference_are_log_probabilities() -> None:
    """lp -1 beats -2 and -4 and has margin 3 (-1 + 3) = 6; under the reference -4 | 0, 0 it would lose."""
    told = preference_loss(POLICY, None, objective="mppo", beta=3.0).diagnostics
    assert told.reward_win_rate.item() == 1.0
    assert told.reward_margin.item() == pytest.approx(6.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_boundary_gradient_share_is_autograds(objective: str) -> None:
    """|dL_plain / d lp_i| summed over the boundary, over the sum over all K; per row, then the mean."""
    policy = torch.tensor([[-1.0, -2.0, -0.5, -3.0], [-1.0, -1.5, -4.0, -2.5]], dtype=torch.float64)
    reference = policy.flip(1) * 0.9
    policy.requires_grad_()
    options: dict[str, Any] = {"beta": 0.8, "clusters": 2, "extras": made_extras(policy)}
    found = preference_loss(policy, reference, objective=objective, dynamic=False, **options)
    (gradient,) = torch.autograd.grad(found.loss.sum(), policy)
    size = gradient[:, 1:].abs()
    share = (size * found.boundary).sum(dim=1) / size.sum(dim=1)
    assert found.diagnostics.boundary_gradient_share.item() == pytest.approx(share.mean().item(), rel=1e-6)


def test_rows_of_a_batch_do_not_mix() -> None:
    draw = torch.Generator().manual_seed(3)
    policy = -10 * torch.rand(5, 7, generator=draw, dtype=torch.float64)
    reference = -10 * torch.rand(5, 7, generator=draw, dtype=torch.float64)
    whole = preference_loss(policy, reference).loss
    single = [preference_loss(policy[[row]], reference[[row]]).loss for row in range(5)]
    torch.testing.assert_close(whole, torch.cat(single), rtol=1e-12, atol=0)


def test_sft_loss_by_hand() -> None:
    """-6 nats over 3 tokens and -1 over 4: 2 and 1/4 nats per token."""
    loss = sft_loss(torch.tensor([-6.0, -1.0]), torch.tensor([3, 4]))
    assert loss.tolist() == [2.0, 0.25]


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r"got 'dmp', wanted one of .*did you mean 'dmpo'"):
        preference_loss(POLICY, REFERENCE, objective="dmp")
    for objective in ("dmpo", "sdpo"):
        with pytest.raises(SettingsError, match=f"'{objective}' needs reference_logps"):
            preference_loss(POLICY, None, objective=objective)
    with pytest.raises(ValueError, match=r"policy_logps.*got \(3,\)"):
        preference_loss(POLICY[0], None, objective="mppo")
    with pytest.raises(ValueError, match=r"policy_logps.*got \(1, 1\)"):
        preference_loss(POLICY[:, :1], None, objective="mppo")
    with pytest.raises(ValueError, match=r"reference_logps: wanted \(1, 3\), got \(1, 2\)"):
        preference_loss(POLICY, REFERENCE[:, :2])
    with pytest.raises(ValueError, match=r"mask: wanted \(1, 2\), got \(1, 3\)"):
        preference_loss(POLICY, REFERENCE, mask=torch.ones(1, 3, dtype=torch.bool))
    extras = made_extras(POLICY)
    with pytest.raises(SettingsError, match=r"'simpo' needs extras\['lengths'\]"):
        preference_loss(POLICY, None, objective="simpo", extras={"ratings": extras["ratings"]})
    with pytest.raises(ValueError, match=r"extras\['lengths'\]: wanted \(1, 3\), got \(1, 2\)"):
        preference_loss(POLICY, None, objective="simpo", extras={"lengths": extras["lengths"][:, 1:]})
    bad = {**extras, "ratings": torch.tensor([[-1.0, 3.0, 3.0]])}
    with pytest.raises(SettingsError, match="recpo: got the rating -1, wanted positive ratings"):
        preference_loss(POLICY, REFERENCE, objective="recpo", extras=bad)
