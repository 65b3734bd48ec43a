"""The report against sums by hand, and the path of strengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from infotorch.core.dependence import group_js_divergence
from infotorch.fairness import (
    FairClassifier,
    FairnessReport,
    FairRegressor,
    PathPoint,
    PenaltyPath,
    calibrate,
    ccdcov_penalty,
    fairness_report,
    penalty_path,
)


def people(n: int = 400, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (n,), generator=g) for _ in range(2))
    age = 20 + 50 * torch.rand(n, generator=g)
    f = torch.sigmoid((a ^ b) + 0.02 * age - 1.5 + 0.5 * torch.randn(n, generator=g))
    y = torch.bernoulli(f, generator=g)
    return f, y, {"a": a, "b": b, "age": age}


def test_rates_by_group():
    f, y, s = people()
    found = fairness_report(f, s, y)
    group = next(g for g in found.groups if g.name == "a=1")
    inside = s["a"] == 1
    positive = f[inside] >= 0.5
    assert group.rows == int(inside.sum())
    assert group.share == pytest.approx(group.rows / 400)
    assert group.metrics["prediction"] == pytest.approx(float(f[inside].mean()))
    assert group.metrics["target"] == pytest.approx(float(y[inside].mean()))
    assert group.metrics["selected"] == pytest.approx(float(positive.double().mean()))
    assert group.metrics["accuracy"] == pytest.approx(float((positive == y[inside].bool()).double().mean()))
    assert group.metrics["true positives"] == pytest.approx(float(positive[y[inside] == 1].double().mean()))
    assert group.metrics["false positives"] == pytest.approx(float(positive[y[inside] == 0].double().mean()))
    assert len(found.groups) == 2 + 2 + 4
    assert len(found.intersections) == 16
    assert sum(g.rows for g in found.intersections) == 400


def test_weights_are_repetitions():
    f, y, s = people(100)
    times = torch.randint(1, 4, (100,), generator=torch.Generator().manual_seed(0))
    s.pop("age")  # whose parts are those of the rows
    weighted = fairness_report(f, s, y, sample_weight=times)
    repeated = fairness_report(
        f.repeat_interleave(times),
        {name: column.repeat_interleave(times) for name, column in s.items()},
        y.repeat_interleave(times),
    )
    for one, other in zip(weighted.intersections, repeated.intersections, strict=True):
        assert one.metrics == pytest.approx(other.metrics)
        assert one.share == pytest.approx(other.share)
    assert weighted.js == pytest.approx(repeated.js)


def test_dependence_is_that_of_the_penalties():
    f, _, s = people()
    found = fairness_report(f, s)
    age = s["age"].double()
    tensors = [s["a"], s["b"], (age - age.mean()) / age.std(correction=0)]
    joint = float(ccdcov_penalty(f.double(), tensors, scale="std"))
    assert found.dependence["ccdcov"] == pytest.approx(joint)
    assert found.dependence["remainder"] == pytest.approx(joint - found.dependence["marginal"])
    cells = torch.stack([s["a"], s["b"], torch.bucketize(age, age.sort().values[[100, 200, 300]], right=True)], 1)
    assert found.js == pytest.approx(float(group_js_divergence(f.double(), cells, bins=20)))
    sampled = fairness_report(f, s, rows=200)
    assert sampled.dependence["ccdcov"] != found.dependence["ccdcov"]
    assert sampled.js == found.js


def test_independent_predictions_are_at_chance():
    _, _, s = people(4000)
    f = torch.rand(4000, generator=torch.Generator().manual_seed(5))
    found = fairness_report(f, s)
    assert found.js == pytest.approx(found.js_by_chance, rel=0.15)
    assert max(abs(v) for v in found.correlations.values()) < 0.002
    assert "squared error" in fairness_report(f, s, torch.randn(4000)).groups[0].metrics


def test_constant_predictions_differ_nowhere():
    _, _, s = people()
    found = fairness_report(torch.full((400,), 0.3), s)
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert found.js == 0.0
    assert found.ratio == pytest.approx(1.0)
    assert max(map(abs, found.dependence.values())) < 1e-12


def test_table_and_picture(tmp_path):
    import json

    f, y, s = people()
    before, after = fairness_report(f, s, y), fairness_report(f.mean().expand_as(f), s, y)
    assert "->" not in str(after)
    assert "a=1, b=0" in str(after)
    assert f"{before.gap:.4f} -> 0.0000" in after.table(before)
    assert after.plot(tmp_path / "report.png", before).stat().st_size > 10_000
    json.dumps(after.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="before: expected a report on the same groups"):
        after.table(fairness_report(f, {"a": s["a"]}, y))


F, Y, S = people(40)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fairness_report(F[1:], S), r"prediction: expected shape \(40,\), .* got \(39, 1\)"),
        (lambda: fairness_report(F, S, Y[1:]), r"target: expected shape \(40,\)"),
        (lambda: fairness_report(F * math.nan, S), "prediction: expected finite"),
        (lambda: fairness_report(F, S, sample_weight=0 * F), "sample_weight: expected positive"),
        (lambda: fairness_report(F, {"a": torch.zeros(40)}), "expected at least two levels"),
        (lambda: fairness_report(F[:3], {"a": [0, 1, 1]}), "prediction: expected at least 4 rows"),
        (lambda: fairness_report(F, S, bins=0), "bins: expected"),
        (lambda: fairness_report(F, S, rows=3), "rows: expected"),
    ],
)
def test_bad_input_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# -- the path ------------------------------------------------------------------------------------------------------


def point(strength: float, loss: float, js: float) -> PathPoint:
    return PathPoint(strength, loss, FairnessReport((), (), {}, {}, js + 0.1, 0.1, 0.0, None))


PATH = PenaltyPath((point(0, 1.0, 0.4), point(1, 1.1, 0.45), point(2, 1.2, 0.2), point(5, 1.5, 0.05)))


def test_front_and_choice():
    assert [p.strength for p in PATH.front()] == [0, 2, 5]
    assert PATH.choose(share=1.0).strength == 0
    assert PATH.choose(share=0.6).strength == 2
    assert PATH.choose(js=0.06).strength == 5
    for options, text in (({}, "exactly one"), ({"js": 1.0, "share": 1.0}, "exactly one"), ({"js": 0.01}, "stronger")):
        with pytest.raises(ValueError, match=text):
            PATH.choose(**options)


def test_path_trades_loss_for_divergence(tmp_path):
    g = torch.Generator().manual_seed(0)
    a = torch.randint(2, (1500,), generator=g)
    x = torch.randn(1500, 2, generator=g) + a.unsqueeze(1)
    y = x.sum(1)
    model = FairRegressor(epochs=8, batch_size=128)
    fitted, path = calibrate(model, x, y, {"a": a}, share=0.95, strengths=(0, 5, 20))
    assert path.points[2].js < path.points[0].js
    assert path.points[2].loss > path.points[0].loss
    chosen = path.choose(share=0.95)
    assert fitted.strength == chosen.strength
    assert len(fitted.history_) == 8 * (1 + [p.strength for p in path.points].index(chosen.strength))
    assert "module_" not in vars(model)  # left as it was
    assert fairness_report(fitted.predict(x), {"a": a}).js_excess < path.points[0].js
    assert path.table().count("\n") == 3
    assert path.plot(tmp_path / "path.png").stat().st_size > 5_000


def test_path_of_a_classifier_takes_labels_and_weights():
    f, y, s = people(300)
    labels = np.where(y > 0, "yes", "no")
    x = torch.stack((f, torch.randn(300)), 1)
    path = penalty_path(FairClassifier(epochs=1), x, labels, s, 1 + f, strengths=(0, 1))
    target = path.points[0].report.groups[0].metrics["target"]
    assert target is not None
    assert 0 < target < 1
    with pytest.raises(ValueError, match="y: expected two classes, got 3"):
        penalty_path(FairClassifier(epochs=1), x, torch.arange(300) % 3, s, strengths=(0, 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strengths": (1.0, 2.0)}, "strengths: expected at least two numbers that rise from 0"),
        ({"strengths": (0.0, 2.0, 1.0)}, "strengths: expected"),
        ({"held_out": 1.0}, "held_out: expected"),
    ],
)
def test_bad_paths_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        penalty_path(FairRegressor(), F.unsqueeze(1), F, S, **options)
