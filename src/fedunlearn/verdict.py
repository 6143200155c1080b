"""What an audit comes to, in sentences: what was found, and what may be promised to whom the data belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from fedunlearn.attacks import TESTS, Attack
from fedunlearn.auditing import Audit
from fedunlearn.audits.certainty import LEVEL, POWER, holm, needed
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN

__all__ = ["ENOUGH", "Verdict", "certain", "conclusion", "summary", "verdicts"]

ENOUGH = needed(0.85, TESTS)
"""Shadows: with fewer, "nothing was found" would mean little: an attacker could be right six times in seven."""

_FAR, _YARDSTICKS = 0.05, 3.0
"""How far from Retrain's the accuracy on what was to be forgotten may be: a share, and distances of two retrained."""

Status = Literal["found", "found beside the old model", "not found", "unknown"]

_KEPT = (
    "Every client of the federation was sent the model from before the request: whoever kept it can still find the "
    "data in that."
)
_NOTHING = "Nothing may be promised on the ground of this audit."
_BLUNT = (
    "the attacks do not even find the data in the model that was trained on them, so that to find nothing elsewhere "
    "means nothing: train longer, take more shadows, or ask about more samples"
)


@dataclass(frozen=True)
class Verdict:
    """Of one method.

    Attributes:
        method: its name.
        status: "found": an attack on the new model does better than chance, or it knows what was to be forgotten much
            better, or much worse, than retrained models; "found beside the old model": only an attacker who holds the
            model from before the request does better than on retrained ones; "not found": none does, and a larger leak
            would have been found; "unknown": the audit cannot tell.
        finding: a sentence.
        promise: what may be promised, in a sentence.
        p: the smallest p-value of its attacks, adjusted for their number (Holm).
    """

    method: str
    status: Status
    finding: str
    promise: str
    p: float


@dataclass(frozen=True)
class _Test:
    """One question to one attack: the sample's, or that about all data together."""

    attack: Attack
    together: bool
    p: float


def verdicts(audit: Audit) -> list[Verdict]:
    """One for each method that is not Retrain, those that diverged last."""
    judged = [_verdict(audit, method) for method in audit.methods if method != REFERENCE]
    lost = [
        Verdict(method, "unknown", f"It diverged in {number} of {audit.shadows + 1} federations.", _NOTHING, 1.0)
        for method, number in audit.lost.items()
    ]
    return judged + lost


def conclusion(audit: Audit) -> str:
    """The audit in a few sentences; never that something were proven."""
    found = verdicts(audit)
    said = [
        f"{_listed(names)}: {text}"
        for status, text in (
            ("found", "traces of the data were found that retrained models do not have"),
            (
                "found beside the old model",
                "in the new model alone nothing was found, but beside the old one it tells more than retrained models",
            ),
            ("not found", "no attack told the data from others like them significantly better than chance"),
            ("unknown", "no conclusion"),
        )
        if (names := [one.method for one in found if one.status == status])
    ]
    blunt = "" if _sensitive(audit) else f" Note that {_BLUNT}."
    return f"{'; '.join(said)}. {_power(audit)}{blunt} {_KEPT}"


def certain(audit: Audit, method: str) -> set[tuple[str, bool]]:
    """The attacks that find more of a method's models than of retrained ones.

    By name, and whether about all data together; after Holm's adjustment: one false alarm in all of a method's tests is
    as rare as 5 %.
    """
    return {(test.attack.name, test.together) for test in _found(list(_tests(audit, method)))}


def summary(audit: Audit) -> dict[str, Any]:
    """What a script would want of it, without curves: the conclusion, the verdicts, and each attack's numbers."""
    return {
        "conclusion": conclusion(audit),
        "verdicts": [dataclasses.asdict(one) for one in verdicts(audit)],
        "shadows": audit.shadows,
        "attacks": {
            attack.name: {
                "knowledge": attack.knowledge,
                "results": {method: dataclasses.asdict(found) for method, found in attack.results.items()},
                "beside": {method: dataclasses.asdict(found) for method, found in attack.beside.items()},
            }
            for attack in audit.attacks
        },
        "quality": dict(audit.quality),
    }


def _verdict(audit: Audit, method: str) -> Verdict:
    tests = list(_tests(audit, method))
    found, p = _found(tests), min(holm([test.p for test in tests]), default=1.0)
    alone, beside = [test for test in found if test.attack.blind], [test for test in found if not test.attack.blind]
    signs = [*(_told(audit, method, test) for test in _strongest(alone, method)), *_known(audit, method)]
    also = "".join(f" {sentence}" for sentence in _also(audit, method))
    if signs:
        promise = (
            "Do not promise that the data are forgotten: say that the model was changed, and that traces of them can "
            f"still be found in it. {_KEPT}"
        )
        return Verdict(method, "found", f"{_sentence(signs)}{also}", promise, p)
    more = [_told(audit, method, test) for test in beside]
    doubt = ""
    if not _sensitive(audit):
        doubt = _BLUNT
    elif audit.shadows < ENOUGH:
        doubt = f"{audit.shadows} shadows are too few for a conclusion on the new model alone: take {ENOUGH} or more"
    if doubt:
        status: Status = "found beside the old model" if more else "unknown"
        return Verdict(method, status, f"{_sentence([*more, doubt])}{also}", _NOTHING, p)
    promise = (
        "It may be promised that the model was changed to forget the data, and that attacks which find them in the "
        "model from before did not find them in the new one; not that nothing is left, for an attack that is right in "
        f"less than {audit.found_wins:.0%} of the cases may have gone unnoticed. {_KEPT}"
    )
    if more:
        known = f"In the new model alone nothing was found; but {'; '.join(more)}."
        promise += " With the new model beside it, it finds more than with a retrained one."
        return Verdict(method, "found beside the old model", f"{known} {_power(audit)}{also}", promise, p)
    tried = len({test.attack.name for test in tests})
    finding = (
        f"None of {tried} attacks told the data from others like them significantly better than chance, or than of "
        f"retrained models. {_power(audit)}{also}"
    )
    return Verdict(method, "not found", finding, promise, p)


def _tests(audit: Audit, method: str) -> Iterator[_Test]:
    """Those about what was to be forgotten, on the model that the method ends with."""
    for attack in audit.attacks:
        if attack.judged and method in attack.beside:
            yield _Test(attack, False, attack.beside[method].sample_p)
            if attack.blind:  # else an attacker can be right every time, about retrained models too
                yield _Test(attack, True, attack.beside[method].client_p)


def _found(tests: list[_Test]) -> list[_Test]:
    return [test for test, p in zip(tests, holm([test.p for test in tests]), strict=True) if p <= LEVEL]


def _strongest(tests: list[_Test], method: str) -> Iterator[_Test]:
    """The surest about all data together, and about single samples."""
    if together := [test for test in tests if test.together]:
        yield max(together, key=lambda test: test.attack.results[method].client.value)
    if single := [test for test in tests if not test.together]:
        yield max(single, key=lambda test: test.attack.beside[method].excess.value)


def _told(audit: Audit, method: str, test: _Test) -> str:
    ours, theirs = test.attack.results[method], test.attack.results[REFERENCE]
    if test.together:
        return (
            f"shown {audit.targets} of the samples together, and as many like them that nobody held, an attacker "
            f"({test.attack.name}) tells which were in training in {ours.client.value:.0%} of the cases (of retrained "
            f"models in {theirs.client.value:.0%})"
        )
    return (
        f"shown one sample of either, an attacker ({test.attack.name}) is right in {ours.sample.value:.1%} of the "
        f"cases ({theirs.sample.value:.1%})"
    )


def _known(audit: Audit, method: str) -> Iterator[str]:
    """Knowledge of the kind of the data, which attackers who tell a sample from its like do not see."""
    rows = [one.models for one in audit.examined if method in one.models]
    if not rows:
        return
    ours, theirs = (fmean(models[name].own for models in rows) for name in (method, REFERENCE))
    yardstick = fmean(abs(models[AGAIN].own - models[REFERENCE].own) for models in rows)
    if abs(ours - theirs) > max(_FAR, _YARDSTICKS * yardstick):
        yield (
            f"it gets {ours:.0%} of what was to be forgotten right, retrained models {theirs:.0%} (two of these differ "
            f"by {yardstick:.1%})"
        )


def _also(audit: Audit, method: str) -> Iterator[str]:
    """What those who stay were sent on the way."""
    backs = [back for one in audit.examined if method in one.models and (back := one.models[method].turned_back)]
    first = next((attack for attack in audit.attacks if attack.name == "First message"), None)
    if backs and all(back.as_before for back in backs):
        yield (
            "The model that recovery began with was sent to those who stay; with its sign turned back it is the old "
            "one, bit for bit."
        )
    elif first is not None and method in first.beside and first.beside[method].client_p <= LEVEL:
        yield "The model that recovery began with, which was sent to those who stay, still gave the data away."


def _sensitive(audit: Audit) -> bool:
    """Whether the attacks find what is certainly there: the data in the model that was trained on them."""
    control = audit.attack("U-LiRA").results[ORIGINAL]
    return control.client.low > 0.5 or control.sample.low > 0.5


def _power(audit: Audit) -> str:
    return (
        f"With {audit.shadows} shadows, one of these attacks would have been noticed with a probability of {POWER:.0%} "
        f"if it were right about {audit.targets} samples together in {audit.found_wins:.0%} of the cases, or about "
        f"single samples in {0.5 + audit.found_excess:.1%}; a weaker one, or a stronger attacker's, perhaps not."
    )


def _sentence(parts: list[str]) -> str:
    said = "; ".join(parts)
    return f"{said[:1].upper()}{said[1:]}."


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
