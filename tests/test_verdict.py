"""What an audit comes to: each status with its sentences, and never more promised than was found."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fedunlearn.auditing import Audit
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.evaluation.table import REFERENCE
from fedunlearn.examination import AGAIN
from fedunlearn.report.tables import audit_as_markdown
from fedunlearn.verdict import ENOUGH, Verdict, certain, conclusion, verdicts
from handmade import AUDIT, HOSTILE, compared


def with_p(audit: Audit, **p: tuple[float, float]) -> Audit:
    """NoT's p-values of an attack, by sample and by client; ``U_LiRA=(0.1, 0.2)``."""
    attacks = []
    for attack in audit.attacks:
        if given := p.get(re.sub(r"[^A-Za-z]", "_", attack.name)):
            own = compared(attack.beside["NoT"].excess.value, *given)
            attack = replace(attack, beside={**attack.beside, "NoT": own})
        attacks.append(attack)
    return replace(audit, attacks=tuple(attacks))


def of(audit: Audit, method: str = "NoT") -> Verdict:
    return next(one for one in verdicts(audit) if one.method == method)


def test_an_attack_on_the_new_model_alone_is_a_find() -> None:
    told = of(AUDIT, HOSTILE)
    assert told.status == "found"
    assert told.p == pytest.approx(3 * 0.00004)  # the smallest of three p-values counts three times
    assert told.finding.startswith(
        "Shown 32 of the samples together, and as many like them that nobody held, an attacker"
    )
    assert "(U-LiRA) tells which were in training in 92% of the cases (of retrained models in 54%)" in told.finding
    assert "(U-LiRA) is right in 69.2% of the cases (50.2%)" in told.finding
    assert told.promise.startswith("Do not promise that the data are forgotten")
    assert certain(AUDIT, HOSTILE) == {("U-LiRA", False), ("U-LiRA", True)}


def test_where_nothing_is_found_it_is_said_what_would_have_been() -> None:
    told = of(AUDIT)
    assert told.status == "not found"
    assert certain(AUDIT, "NoT") == set()
    assert told.finding.startswith("None of 3 attacks told the data from others like them significantly better than")
    assert "about 32 samples together in 77% of the cases, or about single samples in 54.2%" in told.finding
    assert "not that nothing is left" in told.promise
    assert "right in less than 77% of the cases may have gone unnoticed" in told.promise
    assert "Every client of the federation was sent the model from before the request" in told.promise


def test_what_only_the_old_model_beside_the_new_one_tells_is_told_apart() -> None:
    audit = with_p(AUDIT, Before_and_after=(0.0001, 0.5))
    told = of(audit)
    assert told.status == "found beside the old model"
    assert told.finding.startswith("In the new model alone nothing was found; but shown one sample of either")
    assert "more than with a retrained one" in told.promise
    assert "NoT: in the new model alone nothing was found, but" in conclusion(audit)
    few = of(replace(audit, shadows=ENOUGH - 1))
    assert few.status == "found beside the old model"
    assert "too few for a conclusion on the new model alone" in few.finding
    assert few.promise.startswith("Nothing may be promised")


def test_where_retrained_models_tell_something_all_together_is_no_question() -> None:
    """Of either an attacker can be right every time."""
    assert of(with_p(AUDIT, Before_and_after=(0.9, 0.0001))).status == "not found"


def test_an_attack_on_the_new_model_outweighs_the_old_ones() -> None:
    audit = with_p(AUDIT, Before_and_after=(0.0001, 0.5), Sign_turned_back=(0.0002, 0.5))
    assert of(audit).status == "found"
    assert "(Sign turned back)" in of(audit).finding
    assert "(Before and after)" not in of(audit).finding


@pytest.mark.parametrize("p", [0.0102, 0.05])
def test_of_many_attacks_one_is_surprising_by_chance(p: float) -> None:
    """Five tests: one is a find below a fifth of five percent, and not above."""
    audit = with_p(AUDIT, U_LiRA=(p, 0.9), Sign_turned_back=(0.8, 0.9), Before_and_after=(0.7, 0.9))
    assert of(audit).status == "not found"
    assert of(audit).p == pytest.approx(5 * p)
    surer = with_p(audit, U_LiRA=(0.0099, 0.9))
    assert of(surer).status == "found"


def knowing(own: float, again: float = 0.8) -> Audit:
    """Retrained models get 0.8 of what was to be forgotten right, and ``again``; NoT's ``own``."""
    accuracies = {"NoT": own, REFERENCE: 0.8, AGAIN: again}
    examined = tuple(
        replace(
            one,
            models={n: replace(f, own=accuracies.get(n, f.own), turned_back=None) for n, f in one.models.items()},
        )
        for one in AUDIT.examined
    )
    return replace(AUDIT, examined=examined)


def test_a_class_that_is_still_known_is_not_forgotten_though_a_sample_is_like_its_twin() -> None:
    told = of(knowing(0.95))
    assert told.status == "found"
    assert "It gets 95% of what was to be forgotten right, retrained models 80%" in told.finding
    assert "Do not promise" in told.promise


def test_to_forget_more_than_retrained_models_never_knew_gives_away_what_was_asked() -> None:
    assert of(knowing(0.3)).status == "found"


def test_the_yardstick_of_knowledge_is_another_retrained_model() -> None:
    assert of(knowing(0.84)).status == "not found"
    assert of(knowing(0.87)).status == "found"
    assert of(knowing(0.87, again=0.76)).status == "not found"  # two of them are four points apart


def test_with_too_few_shadows_nothing_found_means_nothing() -> None:
    told = of(replace(AUDIT, shadows=ENOUGH - 1))
    assert told.status == "unknown"
    assert told.promise.startswith("Nothing may be promised")
    assert of(replace(AUDIT, shadows=ENOUGH - 1), HOSTILE).status == "found"  # what is found is found
    assert of(replace(AUDIT, shadows=ENOUGH)).status == "not found"


def test_attacks_that_do_not_find_what_is_there_find_nothing_elsewhere() -> None:
    blunt = replace(
        AUDIT,
        attacks=tuple(
            replace(attack, results={**attack.results, ORIGINAL: attack.results[REFERENCE]})
            if ORIGINAL in attack.results
            else attack
            for attack in AUDIT.attacks
        ),
    )
    assert of(blunt).status == "unknown"
    assert of(blunt, HOSTILE).status == "found"  # a leak of its own needs no other
    assert "do not even find the data in the model that was trained on them" in of(blunt).finding
    assert "to find nothing elsewhere means nothing" in conclusion(blunt)


def test_what_those_who_stay_were_sent_is_told() -> None:
    back = replace(AUDIT, examined=AUDIT.examined[:1])  # of the other seed the sign brings it back but nearly
    assert "with its sign turned back it is the old one, bit for bit" in of(back).finding
    assert "bit for bit" not in of(AUDIT).finding


def test_nothing_is_ever_proven() -> None:
    for audit in (AUDIT, with_p(AUDIT, Before_and_after=(0.0001, 0.5)), replace(AUDIT, shadows=12)):
        told = conclusion(audit) + "".join(one.finding + one.promise for one in verdicts(audit))
        assert not re.search(r"\bprov(e|en|es|ed)\b|guarantee|certain", told)


def test_the_markdown_has_the_same_numbers() -> None:
    told = audit_as_markdown(AUDIT)
    rows = {line.split(" | ")[0].strip("| "): line for line in told.splitlines() if line.startswith("| ")}
    assert "| 80.1 (77.1 to 83.1) | 50.2 (47.2 to 53.2) | 51.3 (48.3 to 54.3) | **69.2 (66.2 to 72.2)** |" in told
    assert "**92.0 (72.0 to 92.0)**" in rows["U-LiRA"]  # the last table's row of that name: all together
    assert rows["Sign turned back"].startswith("| Sign turned back |  | 54.0 (34.0 to 54.0) | 46.0 (26.0 to 46.0) |  |")
    assert "LiRA on those who stay" not in rows
    assert rows["Steps to learn the twins"].endswith("| never | 8.0 |")
    assert all(one.promise in told for one in verdicts(AUDIT))
    assert conclusion(AUDIT) in told
