"""What an audit comes to, in sentences: what was found, and what may be promised to whom the data belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fedunlearn.auditing import TESTS, Attack, Audit
from fedunlearn.audits.certainty import LEVEL, POWER, holm, needed
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE

__all__ = ["ENOUGH", "Verdict", "certain", "conclusion", "summary", "verdicts"]

ENOUGH = needed(0.85, TESTS)
"""Shadows: with fewer, "nothing was found" would mean little: an attacker could be right six times in seven."""

Status = Literal["found", "found beside the old model", "not found", "unknown"]

_KEPT = "Whoever kept the model from before the request can still find the data in that."


@dataclass(frozen=True)
class Verdict:
    """Of one method.

    Attributes:
        method: its name.
        status: "found": an attack does better than on retrained models; "found beside the old model": only one that
            holds the model from before the request does; "not found": none does, and a larger leak would have been
            found; "unknown": the audit cannot tell.
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
    """One question to one attack: the sample's, or the client's."""

    attack: Attack
    client: bool
    p: float


def verdicts(audit: Audit) -> list[Verdict]:
    """One for each method that is not Retrain."""
    return [_verdict(audit, method) for method in audit.methods if method != REFERENCE]


def conclusion(audit: Audit) -> str:
    """The audit in a sentence or two; never that something were proven."""
    found = verdicts(audit)
    if not _sensitive(audit):
        return _INSENSITIVE
    said = [
        f"{_listed([one.method for one in found if one.status == status])}: {text}"
        for status, text in (
            ("found", "traces of the data were found that retrained models do not have"),
            (
                "found beside the old model",
                "no attack on the new model alone found more than in retrained models, but beside the old model it "
                "tells more than these do",
            ),
            ("not found", "no attack found more than in retrained models"),
            ("unknown", "too few shadows for a conclusion"),
        )
        if any(one.status == status for one in found)
    ]
    return f"{'; '.join(said)}. {_power(audit)} {_KEPT}"


def certain(audit: Audit, method: str) -> set[tuple[str, bool]]:
    """The attacks that find more of a method's models than of retrained ones.

    By name, and whether about all data together; after Holm's adjustment: one false alarm in all of them is as rare
    as 5 %.
    """
    return {(test.attack.name, test.client) for test in _found(list(_tests(audit, method)))}


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


_INSENSITIVE = (
    "This audit says nothing: its attacks do not even find the data in the model that was trained on them. Train "
    "longer, take more shadows, or ask about more samples."
)


def _verdict(audit: Audit, method: str) -> Verdict:
    tests = list(_tests(audit, method))
    p = min(holm([test.p for test in tests]))
    nothing = "Nothing may be promised on the ground of this audit."
    if not _sensitive(audit):
        return Verdict(method, "unknown", _INSENSITIVE, nothing, p)
    found = _found(tests)
    if alone := [test for test in found if test.attack.blind]:
        return Verdict(
            method,
            "found",
            "; ".join(_told(method, test) for test in _strongest(alone, method)) + ".",
            "Do not promise that the data are forgotten: say that the model was changed, and that traces of them can "
            f"still be found in it. {_KEPT}",
            p,
        )
    beside = "; ".join(_told(method, test) for test in _strongest(found, method))
    if audit.shadows < ENOUGH:
        few = f"{audit.shadows} shadows are too few for a conclusion on the new model alone: take {ENOUGH} or more"
        said = f"{beside}; {few}" if found else few
        return Verdict(method, "found beside the old model" if found else "unknown", f"{said}.", nothing, p)
    promise = (
        "It may be promised that the model was changed to forget the data, and that tests which find them in the model "
        "from before find no more of them in the new model alone than in models that never saw them; not that nothing "
        "is left."
    )
    if found:
        return Verdict(
            method,
            "found beside the old model",
            f"Nothing was found in the new model alone; but {beside}. {_power(audit)}",
            f"{promise} Whoever kept the model from before the request can still find the data in that, and finds more "
            "with the new one beside it than beside a retrained one.",
            p,
        )
    return Verdict(
        method,
        "not found",
        f"None of {len({test.attack.name for test in tests})} attacks found more of the data than in retrained models. "
        f"{_power(audit)}",
        f"{promise} {_KEPT}",
        p,
    )


def _tests(audit: Audit, method: str) -> Iterator[_Test]:
    """Those about what was to be forgotten, on the model that the method ends with."""
    for attack in audit.attacks:
        if attack.judged and method in attack.beside:
            yield _Test(attack, False, attack.beside[method].sample_p)
            yield _Test(attack, True, attack.beside[method].client_p)


def _found(tests: list[_Test]) -> list[_Test]:
    return [test for test, p in zip(tests, holm([test.p for test in tests]), strict=True) if p <= LEVEL]


def _strongest(tests: list[_Test], method: str) -> list[_Test]:
    """The surest about all data together, where it is right more often than of retrained models; and about samples."""

    def wins(test: _Test) -> float:
        return test.attack.results[method].client.value - test.attack.results[REFERENCE].client.value

    by_client = [test for test in tests if test.client and wins(test) > 0]
    by_sample = [test for test in tests if not test.client] or ([] if by_client else tests)
    best = [max(by_client, key=wins)] if by_client else []
    return best + ([max(by_sample, key=lambda test: test.attack.beside[method].excess.value)] if by_sample else [])


def _told(method: str, test: _Test) -> str:
    ours, theirs = test.attack.results[method], test.attack.results[REFERENCE]
    if test.client and ours.client.value > theirs.client.value:
        return (
            f"shown all of the data and as many samples that nobody held, an attacker ({test.attack.name}) tells "
            f"which were in training in {ours.client.value:.0%} of the cases (of retrained models in "
            f"{theirs.client.value:.0%})"
        )
    return (
        f"shown one sample of either, an attacker ({test.attack.name}) is right in {ours.sample.value:.1%} of the "
        f"cases ({theirs.sample.value:.1%})"
    )


def _sensitive(audit: Audit) -> bool:
    """Whether the attacks find what is certainly there: the data in the model that was trained on them."""
    control = audit.attack("U-LiRA").results[ORIGINAL]
    return control.client.low > 0.5 or control.sample.low > 0.5


def _power(audit: Audit) -> str:
    return (
        f"With {audit.shadows} shadows, an attacker who is right about all of the data together in "
        f"{audit.found_wins:.0%} of the cases, or about single samples in {0.5 + audit.found_excess:.1%}, would have "
        f"been noticed with a probability of {POWER:.0%}; a weaker one perhaps not."
    )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
