"""The script that tells what clients can measure of a run's models themselves, and what it has told."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from diagnosed import LABELS
from fedunlearn.audits import recognition
from fedunlearn.audits.recognition import Recognised
from fedunlearn.audits.signals import confidence
from fedunlearn.backends.in_process import _Engine
from fedunlearn.evaluation.rows import ORIGINAL
from fedunlearn.federation import Turn
from fedunlearn.requests import ForgetClient
from fedunlearn.subject import LAST, Inputs, Subject, subjects

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Which is no module of the package."""
    spec = importlib.util.spec_from_file_location("recognised", DOCS / "recognised.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that is looked at is small; in this process alone, so that no worker counts otherwise."""
    monkeypatch.setattr(recognition, "FEWEST", 10)
    monkeypatch.setattr(_Engine, "_ready_pool", lambda engine: None)


@pytest.fixture(scope="module")
def subject(kept: Path) -> Subject:
    return next(subjects(kept))


def test_each_model_is_audited_at_the_client_that_leaves(script: ModuleType, subject: Subject) -> None:
    """The numbers that need no draws, counted here from the samples and the networks alone."""
    rows = [dict(zip(script.MODELS, row, strict=True)) for row in script.audited(subject)]
    assert [(row["Seed"], row["Model"], row["Client"]) for row in rows] == [
        ("3", label, "0") for label in (ORIGINAL, *LABELS)
    ]
    client = subject.simulation.federation.where(ForgetClient("0"))
    for row in rows:
        (ours, own, own_right), (theirs, unseen, unseen_right) = (
            said(client.run(Inputs(part), subject.original, Turn(0, "evaluate", 0)), subject, row["Model"])
            for part in ("train", "validation")
        )
        above = (ours[:, None] > theirs[None]).double() + (ours[:, None] == theirs[None]).double() / 2
        chances, ranked, weighed, rights = [], [], [], []
        for label in sorted({*own.tolist()} & {*unseen.tolist()}):
            mine, others = own == label, unseen == label
            m, u = int(mine.sum()), int(others.sum())
            chances.append(float(above[mine][:, others].mean()))
            rights.append((float(own_right[mine].mean()), float(unseen_right[others].mean())))
            ranked.append(m * u / (m + u + 1))
            weighed.append(m * u / (m + u))
        assert sum(weighed) >= 5
        ours_right, theirs_right = np.average(rights, axis=0, weights=weighed)
        near = 0.101  # half of the largest step
        assert float(row["Area"]) == pytest.approx(float(np.average(chances, weights=ranked)), abs=near)
        assert float(row["Own right, %"]) == pytest.approx(100 * ours_right, abs=100 * near)
        assert float(row["Unseen right, %"]) == pytest.approx(100 * theirs_right, abs=100 * near)


def said(replies: object, subject: Subject, label: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the one client's samples: confidences, classes, and which are right."""
    ((_, reply),) = list(replies)  # type: ignore[call-overload]
    x, y = reply.values["x"], reply.values["y"]
    with torch.no_grad():
        scores = subject.network(subject.models[label, LAST])(x)
    return confidence(scores, y), y, (scores.argmax(1) == y).double()


def test_a_model_that_nothing_was_done_to_is_found_if_the_samples_are(script: ModuleType, subject: Subject) -> None:
    """So the row of the model before the request says what the others' judgements hang on."""
    original, *others = (dict(zip(script.MODELS, row, strict=True)) for row in script.audited(subject))
    assert original["Judgement"] in ("traces found", "cannot tell")
    assert (original["Judgement"] == "traces found") == (original["p"] == "<0.001" or float(original["p"]) <= 0.05)
    if original["Judgement"] == "cannot tell":
        assert "nothing found" not in [other["Judgement"] for other in others]


def test_each_client_is_asked_as_if_it_alone_had_asked(
    script: ModuleType, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = subject.simulation.task(subject.simulation.federation, subject.original)
    clients = subject.simulation.federation
    asked: list[dict[str, Recognised]] = []
    answers = script.answers
    monkeypatch.setattr(script, "answers", lambda *given: asked.append(answers(*given)) or asked[-1])
    row = dict(zip(script.EVERYBODY, script.everybody(subject), strict=True))
    (together,) = asked
    alone = {name: answers(task, clients.marking(ForgetClient(name)), subject.original)[name] for name in together}
    assert together == alone
    assert len(set(alone.values())) == int(row["Clients"]) == 4
    known = [one.p_known for one in alone.values()]
    assert int(row["Found"]) == sum(p <= 0.05 / 2 for p in known)
    assert row["Areas"].split(" to ")[0] == f"{min(one.area for one in alone.values()):.2f}"


def test_what_is_committed_is_such_as_the_script_prints(script: ModuleType, kept: Path) -> None:
    """Also of the same columns; that the document says the same stands in `test_results`."""
    committed = (DOCS / "audited" / "recognised.md").read_text(encoding="utf-8")
    printed = script.recognised(kept) + "\n"

    def heads(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("| ") or "Seed" in line or "---" in line]

    assert heads(committed) == heads(printed)
    seeds = [line.split(" | ")[0].removeprefix("| ") for line in printed.splitlines() if line.startswith("| ")]
    assert seeds == ["Seed", "---", *["3"] * 4, *["4"] * 4, "Seed", "---", "3", "4"]
