"""The theory's diagnoses of a run: each finds what it says, recomputed by hand; nothing is done twice, nothing lost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from diagnosed import KEPT, LABELS, ROUNDS, quick
from fedunlearn import diagnoses
from fedunlearn.atomic import FileError
from fedunlearn.diagnoses import (
    DIAGNOSES,
    Bounds,
    Diagnosis,
    Similarities,
    bounds,
    control,
    diagnose,
    gaps,
    longest,
    optimality,
    reached,
    similarities,
    spectra,
)
from fedunlearn.findings import Found, averaged, read_found
from fedunlearn.programs import SGD, Adam, Cosine, LocalTraining
from fedunlearn.runfolder import FolderError
from fedunlearn.runner import run
from fedunlearn.subject import LAST, Subject, subjects
from fedunlearn.theory.activations import Similarity, activations
from fedunlearn.theory.bound import Bound, Checkpoint, loss_gap
from fedunlearn.theory.gradient_spectrum import gradient_spectrum
from fedunlearn.weights import Weights
from tiny import load_tiny


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick():
        yield


@pytest.fixture(scope="module")
def folder(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(kept, tmp_path_factory.mktemp("diagnosed") / "run"))


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    return next(subjects(folder))


@pytest.fixture(scope="module")
def along(subject: Subject) -> Bounds:
    return bounds(subject)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("theory")))


def result_of(steps: Generator[int, None, Found[Any]]) -> Found[Any]:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


# --- CKA


def unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """HSIC of two Gram matrices, by Song and others (2012), eq. 5."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    mixed = 2 * k.sum(0) @ m.sum(0) / (n - 2)
    return float((np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - mixed) / (n * (n - 3)))


def cka(one: np.ndarray, other: np.ndarray) -> float:
    k, m = one @ one.T, other @ other.T
    return unbiased(k, m) / math.sqrt(unbiased(k, k) * unbiased(m, m))


def test_each_models_features_are_held_against_the_originals(subject: Subject) -> None:
    found = similarities(subject).models
    drawn = ("first layer kept, rest drawn anew", "first layer negated, rest drawn anew")
    # What FT begins with is the original itself, and is not shown.
    assert list(found) == ["Retrain, first", "NoT, first", "Retrain, last", "FT, last", "NoT, last", *drawn]
    x = subject.test[0][:64]
    before = activations(subject.network(subject.original), x)
    for label in ("Retrain, first", "FT, last", "NoT, last"):
        method, moment = label.split(", ")
        after = activations(subject.network(subject.models[method, moment]), x)
        assert list(found[label]) == list(before) == list(after)
        for place, similarity in found[label].items():
            assert similarity.unbiased == pytest.approx(
                cka(before[place].double().numpy(), after[place].double().numpy())
            )
            assert similarity.samples == 64


def test_two_networks_keep_the_negated_layer_alone(subject: Subject) -> None:
    found, first = similarities(subject).models, "conv1"
    kept, negated = (found[f"first layer {told}, rest drawn anew"] for told in ("kept", "negated"))
    assert kept[first].unbiased == pytest.approx(1)
    # A bias is not negated, and a Gram matrix of centred features does not see it.
    assert negated[first].unbiased == pytest.approx(1)
    assert kept["relu1"].unbiased == pytest.approx(1)
    assert negated["relu1"].unbiased < 0.999
    assert kept["head"].unbiased < 0.9
    x = subject.test[0][:64]
    rest = subject.fresh("rest")
    mixed = {n: subject.original.parameters[n] if n.startswith("conv1.") else p for n, p in rest.parameters.items()}
    after = activations(subject.network(replace(rest, parameters=mixed)), x)["head"].double().numpy()
    before = activations(subject.network(subject.original), x)["head"].double().numpy()
    assert kept["head"].unbiased == pytest.approx(cka(before, after))


# --- gaps


def loss(subject: Subject, weights: Weights) -> float:
    x, y = subject.retained
    with torch.no_grad():
        return float(cross_entropy(subject.network(weights)(x).double(), y))


def test_a_layer_of_the_other_model_costs_what_its_graft_loses(subject: Subject) -> None:
    original, retrained = subject.original, subject.models["Retrain", LAST]
    found = {(one.host, one.donor, one.layer): one.gap for one in gaps(subject).gaps}
    hosts = {(host, donor) for host, donor, _ in found}
    assert hosts == {("Original", "Retrain"), ("Retrain", "Original"), ("original", "negated")}
    mixed = {n: retrained.parameters[n] if n.startswith("conv2.") else p for n, p in original.parameters.items()}
    gap = found["Original", "Retrain", "conv2"]
    alone = [loss(subject, weights) for weights in (original, retrained)]
    assert gap.loss == pytest.approx(loss(subject, replace(original, parameters=mixed)))
    assert gap.loss_above_best == pytest.approx(gap.loss - min(alone))
    turned = {n: -p if n == "conv1.weight" else p for n, p in original.parameters.items()}
    gap = found["original", "negated", "conv1"]
    assert gap.loss_above_best == pytest.approx(loss(subject, replace(original, parameters=turned)) - alone[0])


# --- Jacobian


def test_the_negated_layer_is_the_methods_or_the_one_that_is_named(subject: Subject) -> None:
    assert control(subject).negated == ("conv1.weight",)
    found = control(subject, ("conv2",))
    assert found.negated == ("conv2.weight",)
    assert found.samples == 24
    assert {row.layer: row.place for row in found.rows}["conv2"] == "at"
    silent = replace(subject, plan=replace(subject.plan, methods=subject.plan.methods[:2]))
    assert silent.negating == {}
    with pytest.raises(ValueError, match="no method of this run negates a layer: name some with --layer"):
        control(silent)
    assert control(silent, ("conv2",)) == found


# --- spectrum


def test_each_spectrum_is_that_of_where_recovery_begins(subject: Subject) -> None:
    found = spectra(subject).methods
    assert tuple(found) == LABELS
    alone = gradient_spectrum(
        subject.network(subject.original),
        *subject.retained,
        subset_size=40,
        subsets=1,
        batches=len(subject.retained[1]),
        batch_size=1,
        seed=3,
    )
    assert found["FT"] == alone
    assert found["NoT"].population != alone.population


def test_a_small_network_has_small_subsets(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    elements = sum(one.numel() for one in subject.original.parameters.values())
    asked = []

    def spy(*_: object, **options: Any) -> None:
        asked.append((options["subset_size"], options["parameters"]))

    monkeypatch.setattr(diagnoses, "gradient_spectrum", spy)
    monkeypatch.setattr(diagnoses, "_SUBSET", 2000)
    spectra(subject)
    monkeypatch.setattr(diagnoses, "_FIRST_BLOCKS", ("layer1.0.*", "conv1.*"))
    spectra(subject)
    first = sum(p.numel() for name, p in subject.original.parameters.items() if name.startswith("conv1."))
    assert first < elements < 2000
    assert asked == [(elements, None)] * 3 + [(first, ["conv1.*"])] * 3


# --- optimality


def test_a_negated_layer_and_the_retrained_models(subject: Subject) -> None:
    found = optimality(subject)
    assert list(found.norms) == ["conv1.weight"]
    own, other = (
        weights.parameters["conv1.weight"].double().flatten().numpy()
        for weights in (subject.original, subject.models["Retrain", LAST])
    )

    def away(theta: np.ndarray) -> float:
        along = max(0.0, float(theta @ other)) / float(np.linalg.norm(other))  # the way to go along the retrained layer
        return math.sqrt(float(theta @ theta) - along**2) / float(np.linalg.norm(theta))

    bound, free = found.norms["conv1.weight"]
    assert bound == pytest.approx(away(-own))
    assert free == pytest.approx(min(away(-own), away(own)))
    assert 0.5 < free <= bound <= 1
    assert [one.layer for one in found.conditions.layers] == ["conv1"]
    assert list(optimality(subject, ("conv2",)).norms) == ["conv2.weight"]


def test_the_retrained_model_may_be_nearer(subject: Subject) -> None:
    """Where it is the original with the sign turned, the negated layer is optimal itself."""
    turned = {name: -p for name, p in subject.original.parameters.items()}
    models = {**subject.models, ("Retrain", LAST): replace(subject.original, parameters=turned)}
    assert optimality(replace(subject, models=models)).norms["conv1.weight"] == pytest.approx((0, 0), abs=1e-6)


# --- bound


def moments(gap_start: float, gap_retrained: float, *gaps: float) -> Bound:
    checkpoints = tuple(Checkpoint(float(at), 1, 1, gap, 1, 0, 0, 0, 0) for at, gap in enumerate(gaps))
    return Bound(checkpoints, gap_start, gap_retrained, *[0.0] * 14)


@pytest.mark.parametrize(
    ("bound", "when"),
    [
        (moments(0.1, 0.5, 0.1, 0.3, 0.49, 0.5, 0.2), 3.0),
        (moments(0.1, 0.5, 0.1, 0.3, 0.7, 0.5), 2.0),  # further is as good
        (moments(0.5, 0.1, 0.5, 0.6, 0.05), 2.0),  # downwards
        (moments(0.1, 0.5, 0.1, 0.3, 0.49), None),
        (moments(0.1, 0.5, 0.1, -0.9), None),  # as far, the other way
        (replace(moments(0.1, 0.5, 0.1, 0.3, 0.49), epsilon=0.1), 2.0),  # 0.1 + 0.9 * 0.4 = 0.46
    ],
)
def test_a_gap_is_reached_when_it_has_come_as_far_as_retrains(bound: Bound, when: float | None) -> None:
    assert reached(bound) == when


def path_of(*rounds: int) -> list[tuple[int, Weights]]:
    return [(number, Weights({"w": torch.full((1,), float(number))}, {})) for number in rounds]


def rounds_of(path: Sequence[tuple[int, Weights]]) -> list[int]:
    return [number for number, _ in path]


def test_of_a_long_way_the_rounds_that_about_double_are_looked_at() -> None:
    assert rounds_of(diagnoses._doubling(path_of(*range(21)))) == [0, 1, 2, 4, 8, 16, 20]
    assert rounds_of(diagnoses._doubling(path_of(*range(0, 21, 2)))) == [0, 2, 4, 8, 16, 20]
    assert rounds_of(diagnoses._doubling(path_of(0, 5, 10, 15))) == [0, 5, 10, 15]


def test_a_run_that_kept_nothing_on_the_way_has_no_bound() -> None:
    with pytest.raises(ValueError, match=r"has kept no models on the way: run it with keep\.every, 2 say"):
        diagnoses._doubling(path_of(0, 5, 20))


@pytest.mark.parametrize(
    ("gaps", "target", "seen"),
    [
        ([0.1, 0.2, 0.5, 0.6], 0.5, [0, 1, 2]),
        ([0.9, 0.6, 0.3, 0.2], 0.3, [0, 1, 2]),
        ([0.1, 0.2, 0.3, 0.4], 0.5, [0, 1, 2, 3]),
        ([0.5, 0.6, 0.7, 0.8], 0.5, [0, 1]),  # there from the beginning: a way has two ends all the same
    ],
)
def test_a_way_ends_where_the_gap_is_closed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, gaps: list[float], target: float, seen: list[int]
) -> None:
    monkeypatch.setattr(diagnoses, "_gap", lambda _, weights: gaps[int(weights.parameters["w"])])
    assert rounds_of(list(diagnoses._until_reached(path_of(*range(4)), subject, target))) == seen


@pytest.mark.parametrize(
    ("held", "training", "pace"),
    [
        ([48, 48, 48], LocalTraining(SGD(0.05, 0.9), batch_size=16), (0.5, 3)),
        ([48, 48, 48], LocalTraining(SGD(0.05, 0.0), batch_size=16, epochs=2), (0.05, 6)),
        ([48, 50, 10], LocalTraining(SGD(0.1, 0.5), batch_size=16), (0.2, (3 + 4 + 1) / 3)),
        ([49], LocalTraining(SGD(0.1, 0.0), batch_size=16), (0.1, 3)),  # a single sample joins the batch before it
        ([64], LocalTraining(SGD(0.1, 0.0), batch_size=16, epochs=0.3), (0.1, 2)),  # 1.2 batches are two
    ],
)
def test_the_time_of_a_round_is_learning_rate_times_steps(
    held: list[int], training: LocalTraining, pace: tuple[float, float]
) -> None:
    assert diagnoses._pace(training, held) == pytest.approx(pace)


def test_without_one_learning_rate_there_is_no_time() -> None:
    with pytest.raises(ValueError, match=r"of gradient descent, .* not of Adam: run it with training\.optimizer SGD"):
        diagnoses._pace(LocalTraining(Adam(0.01)), [48])
    with pytest.raises(ValueError, match=r"one learning rate: run it with training\.schedule Constant"):
        diagnoses._pace(LocalTraining(schedule=Cosine(10)), [48])


def test_bounds_are_along_the_kept_models(subject: Subject, along: Bounds) -> None:
    """Three clients with 48 samples, 3 batches of 16 each; learning rate 0.05, momentum 0.9: 1.5 a round."""
    assert list(along.bounds) == ["FT", "NoT"]
    models = {label: dict(subject.path(label)) for label in along.bounds}
    for label, bound in along.bounds.items():
        times = [one.time for one in bound.checkpoints]
        assert times == pytest.approx([1.5 * rounds for rounds in (0, 1, 2, 4, 6)][: len(times)])
        for one in bound.checkpoints:
            network = subject.network(models[label][round(one.time / 1.5)])
            assert one.gap == pytest.approx(loss_gap(network, subject.retained, subject.forgotten))
        retrained = subject.network(subject.models["Retrain", LAST])
        assert bound.gap_retrained == pytest.approx(loss_gap(retrained, subject.retained, subject.forgotten))
        assert bound.lr == pytest.approx(0.5)
        assert along.measured[label] == reached(bound)
    assert along.bounds["FT"].loss_start == pytest.approx(loss(subject, subject.original), rel=1e-4)
    sample = subject.simulation.setting.flops
    assert along.flops == pytest.approx(3 * 16 * (sample.forward + sample.backward) / 0.5)


def test_a_share_of_the_clients_computes_less(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(subject.plan, training=replace(subject.plan.training, participation=0.5))
    asked: list[int] = []

    def spy(*_: object, batch_size: int, **__: object) -> Bound:
        asked.append(batch_size)
        return moments(0.1, 0.5, 0.1, 0.3)

    monkeypatch.setattr(diagnoses, "bound_along", spy)
    found = bounds(replace(subject, plan=half))
    assert asked == [2 * 16, 2 * 16]  # of three clients
    sample = subject.simulation.setting.flops
    assert found.flops == pytest.approx(2 * 16 * (sample.forward + sample.backward) / 0.5)


def test_the_least_loss_is_that_of_a_retrain_of_twice_the_rounds(subject: Subject, tmp_path: Path) -> None:
    twice = load_tiny(tmp_path, *KEPT, "seeds=[3]", f"training.rounds={2 * ROUNDS}", 'methods=["Retrain"]')
    for _ in run(twice, tmp_path / "twice", workers=1):
        pass
    (longer,) = subjects(tmp_path / "twice")
    assert longest(subject).same_bits(longer.models["Retrain", LAST])


# --- means over seeds


@dataclass(frozen=True)
class Made:
    """Of all kinds of fields that results have."""

    number: float
    known: float | None
    count: int
    says: tuple[str, ...]
    curve: tuple[float, ...]
    by_name: dict[str, float]
    inner: Similarity


numbers = st.floats(allow_nan=False, width=32)


def made(curve: int) -> st.SearchStrategy[Made]:
    return st.builds(
        Made,
        number=numbers,
        known=st.none() | numbers,
        count=st.integers(0, 5),
        says=st.lists(st.sampled_from("abc"), max_size=3, unique=True).map(tuple),
        curve=st.lists(numbers, min_size=curve, max_size=curve).map(tuple),
        by_name=st.fixed_dictionaries({"a": numbers, "b": numbers}),
        inner=st.builds(Similarity, numbers, numbers, st.just(9)),
    )


def mean(*values: float) -> Any:
    return pytest.approx(float(np.mean(np.array(values, dtype=float))), nan_ok=True, rel=1e-6, abs=1e-30)


@given(results=st.integers(0, 3).flatmap(lambda curve: st.lists(made(curve), min_size=1, max_size=4)))
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_the_mean_is_of_every_real_number(results: list[Made]) -> None:
    found = averaged(results)
    assert found.number == mean(*(one.number for one in results))
    known = [one.known for one in results if one.known is not None]
    assert found.known == (mean(*known) if len(known) == len(results) else None)
    assert found.count == results[0].count
    assert set(found.says) == {said for one in results for said in one.says}
    for at, value in enumerate(found.curve):
        assert value == mean(*(one.curve[at] for one in results))
    assert {name: mean(*(one.by_name[name] for one in results)) for name in ("a", "b")} == found.by_name
    assert found.inner.biased == mean(*(one.inner.biased for one in results))


@given(one=made(2))
def test_the_mean_of_one_is_itself(one: Made) -> None:
    assert averaged([one]) is one


SIMPLE = Made(1.0, None, 1, (), (1.0, 2.0), {"a": 1.0}, Similarity(1.0, 1.0, 9))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(SIMPLE, curve=(1.0,)), "differ in length: look at each seed by itself, with --seed"),
        (replace(SIMPLE, by_name={"b": 1.0}), "differ in what they are of: look at each seed by itself, with --seed"),
        (replace(SIMPLE, inner=moments(0, 1)), "differ in kind: look at each seed by itself, with --seed"),
    ],
)
def test_what_is_not_built_alike_has_no_mean(other: Made, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        averaged([SIMPLE, other])


def test_ways_of_different_lengths_have_a_mean_without_their_moments() -> None:
    long, short = moments(0.1, 0.5, 0.1, 0.3, 0.5), moments(0.3, 0.7, 0.3, 0.7)
    both = averaged([Bounds({"FT": long}, {"FT": 2.0}, 4.0), Bounds({"FT": short}, {"FT": 1.0}, 4.0)])
    assert both.bounds["FT"] == replace(
        moments(0.2, 0.6), gap_start=pytest.approx(0.2), gap_retrained=pytest.approx(0.6)
    )
    assert both.measured == {"FT": 1.5}
    never = averaged([Bounds({}, {"FT": 2.0}, 4.0), Bounds({}, {"FT": None}, 4.0)])
    assert never.measured == {"FT": None}  # there is no mean of what one of them did not reach


# --- files


def strictly(path: Path) -> Any:
    """JSON as others read it, who know neither NaN nor Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("name", list(DIAGNOSES))
def test_every_diagnosis_there_and_back(folder: Path, name: str) -> None:
    found = result_of(diagnose(name, folder, command=f"fedunlearn theory {name}"))
    assert (found.name, found.seeds, found.about) == (name, (3, 4), "One of four leaves")
    path = folder / "theory" / f"{name}.json"
    strictly(path)
    again = read_found(path, DIAGNOSES[name].kind)
    assert repr(again) == repr(replace(found, decides=again.decides))  # NaN is not equal to itself
    assert again.decides == found.decides
    assert repr(again.mean) == repr(found.mean)
    assert [type(one) for one in again.results] == [DIAGNOSES[name].kind] * 2


ODD = Similarities({"NoT, last": {"conv1": Similarity(math.nan, math.inf, 9), "head": Similarity(-math.inf, 0.5, 9)}})


def test_what_json_does_not_know_comes_back_as_it_was(tmp_path: Path) -> None:
    path = Found("cka", "odd", "", (0,), (ODD,)).write(tmp_path)
    told = strictly(path)["results"][0]["models"]["NoT, last"]
    assert told["conv1"] == {"biased": "NaN", "unbiased": "Infinity", "samples": 9}
    assert told["head"]["biased"] == "-Infinity"
    (again,) = read_found(path, Similarities).results
    assert repr(again) == repr(ODD)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON", r"cka\.json is no JSON"),
        ("[]", r"cka\.json holds no table"),
        ("{}", r"cka\.json is no diagnosis of this version: remove it, to have it anew"),
        ('{"format": 7}', r"cka\.json is no diagnosis of this version: remove it"),
        ('{"format": 1, "name": "cka"}', r"cka\.json is no diagnosis \(it lacks 'results'\): remove it"),
        ('{"format": 1, "results": [{"models": 3}]}', r"cka\.json is no diagnosis \(.*\): remove it"),
        ('{"format": 1, "results": []}', r"cka\.json is no diagnosis \(.*\): remove it"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "cka.json"
    path.write_text(text)
    with pytest.raises(FileError, match=says) as told:
        read_found(path, Similarities)
    assert "\n" not in str(told.value)


# --- going on


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that were really looked at, by a diagnosis that costs nothing."""
    seen: list[int] = []

    def look(subject: Subject, layers: tuple[str, ...] = ()) -> Similarities:
        seen.append(subject.seed)
        return Similarities({f"{subject.seed} {layers}": {}})

    monkeypatch.setitem(DIAGNOSES, "cka", Diagnosis("cka", Similarities, look))  # type: ignore[arg-type]
    return seen


def test_broken_off_after_a_seed_it_goes_on(copy: Path, looked: list[int]) -> None:
    steps = diagnose("cka", copy)
    assert next(steps) == 3
    steps.close()
    assert read_found(copy / "theory" / "cka.json", Similarities).seeds == (3,)
    steps = diagnose("cka", copy)
    assert [next(steps), next(steps)] == [3, 4]
    assert looked == [3, 4]
    found = result_of(diagnose("cka", copy, command="again"))
    assert (found.seeds, found.command) == ((3, 4), "again")
    assert [list(one.models) for one in found.results] == [["3 ()"], ["4 ()"]]
    assert looked == [3, 4]


def test_what_is_known_of_other_seeds_is_not_lost_on_the_way(copy: Path, looked: list[int]) -> None:
    assert result_of(diagnose("cka", copy, seeds=(4,))).seeds == (4,)
    steps = diagnose("cka", copy)
    assert next(steps) == 3
    steps.close()
    assert set(read_found(copy / "theory" / "cka.json", Similarities).seeds) == {3, 4}
    found = result_of(diagnose("cka", copy))
    assert found.seeds == (3, 4)
    assert [list(one.models) for one in found.results] == [["3 ()"], ["4 ()"]]
    assert looked == [4, 3]
    assert result_of(diagnose("cka", copy, seeds=(3,))).results == found.results[:1]


@pytest.mark.parametrize("options", [{"most": 60}, {"layers": ("conv2",)}])
def test_with_other_options_it_is_done_anew(copy: Path, looked: list[int], options: dict[str, Any]) -> None:
    result_of(diagnose("cka", copy))
    result_of(diagnose("cka", copy, **options))
    assert looked == [3, 4, 3, 4]
    result_of(diagnose("cka", copy, **options))
    assert looked == [3, 4, 3, 4]


def test_with_other_code_or_after_a_broken_file_it_is_done_anew(
    copy: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    result_of(diagnose("cka", copy))
    with monkeypatch.context() as other:
        other.setattr(diagnoses, "determinants", lambda _: {"code": "other"})
        result_of(diagnose("cka", copy))
    assert looked == [3, 4, 3, 4]
    (copy / "theory" / "cka.json").write_text("{")
    assert result_of(diagnose("cka", copy)).seeds == (3, 4)
    assert looked == [3, 4, 3, 4, 3, 4]


def test_a_run_that_has_nothing_to_look_at_is_refused_before_anything_is_written(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no run's folder"):
        next(diagnose("cka", tmp_path / "nothing"))
    on_the_way = {f"recover-{number:04d}" for number in range(1, ROUNDS)}
    for path in copy.glob("seed-*/[34]-*/complete.json"):
        told = json.loads(path.read_text())
        kept = {name: digest for name, digest in told["weights"].items() if name not in on_the_way}
        path.write_text(json.dumps({**told, "weights": kept}))
    with pytest.raises(ValueError, match=r"kept no models on the way: run it with keep\.every"):
        next(diagnose("bound", copy))
    assert not (copy / "theory").exists()


def test_the_noise_of_minibatches_needs_all_samples_that_stay(subject: Subject) -> None:
    few = replace(subject, most=subject.simulation.partition.forget[0])
    with pytest.raises(ValueError, match=r"that of drawing from all \d+ samples that stay: give --samples \d+ or more"):
        bounds(few)


def test_a_model_without_gradients_has_no_spectrum_and_the_others_do(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchvision's ViT begins, with a head of zeros."""
    last = {name: p * 0 if name.startswith("head") else p for name, p in subject.original.parameters.items()}
    models = {**subject.models, ("Retrain", "first"): replace(subject.original, parameters=last)}
    monkeypatch.setattr(diagnoses, "_FIRST_BLOCKS", ("conv1.*",))
    found = spectra(replace(subject, models=models))
    assert set(found.methods) == {"FT", "NoT"}
    assert found.silent == {
        "Retrain": "gradients on a subset are all the same: pick parameters that the loss depends on"
    }
