"""The server of a federation that forgets: every kind of request, bit for bit what the same does in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from deletion.hospitals import PLAN, Hospitals, forgotten, trained, twin
from fedunlearn.architecture import Architecture
from fedunlearn.contract import SmallNet
from fedunlearn.deletion import receipt
from fedunlearn.deletion.service import Service
from fedunlearn.federation import Predicate
from fedunlearn.requests import ForgetClient, ForgetInstances, Rest


def until(service: Service, trained: int) -> None:
    """Steps up to a number of training rounds."""
    while service._standing.trained < trained:
        assert service.step()


def test_without_requests_it_is_training(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    weights = hospitals.service().run()
    fresh = Architecture(SmallNet).fresh(PLAN.seed)
    assert weights.same_bits(trained(twin(), fresh, 0, 3))


@pytest.mark.parametrize("scope", ["client", "class:1", "instances"])
def test_a_request_ends_in_a_receipt_and_the_model_is_the_one_of_one_process(tmp_path: Path, scope: str) -> None:
    hospitals = Hospitals(tmp_path)
    service = hospitals.service()
    until(service, 2)
    id = hospitals.files("east", hospitals.instances("east", [0, 3, 5]) if scope == "instances" else scope)
    weights = service.run()
    places = {"client": range(21), "class:1": range(1, 21, 3), "instances": [0, 3, 5]}[scope]
    request: Predicate = ForgetClient("east") if scope == "client" else ForgetInstances({"east": tuple(places)})
    federation, fresh = twin(), Architecture(SmallNet).fresh(PLAN.seed)
    expected = forgotten(federation, trained(federation, fresh, 0, 2), request)
    expected = trained(federation.where(Rest(request)), expected, 2, 3)
    assert weights.same_bits(expected)
    assert weights.negations == expected.negations == (("conv.weight",),)
    (entry,) = service._standing.requests.values()
    assert (entry.request, entry.state, entry.client) == (id, "done", "east")
    assert entry.receipt is not None
    assert receipt.verify(entry.receipt, hospitals.keys["server"].public) == []
    (posted,) = hospitals.outbox("east").entries()
    assert posted.answer is not None
    assert posted.answer.receipt == entry.receipt


def test_who_is_off_the_list_can_still_be_forgotten(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path)
    service = hospitals.service()
    until(service, 2)
    hospitals.book.close()
    roster = {name: key.public.text for name, key in hospitals.keys.items() if name not in ("server", "west")}
    hospitals.names = ("north", "east", "south")
    service = hospitals.service()
    hospitals.book.enrol(roster)
    hospitals.desk.file("client", "it has left", hospitals.keys["server"], client="west")
    weights = service.run()
    federation, fresh = twin(), Architecture(SmallNet).fresh(PLAN.seed)
    expected = forgotten(federation, trained(federation, fresh, 0, 2), ForgetClient("west"))
    assert weights.same_bits(trained(federation.where(Rest(ForgetClient("west"))), expected, 2, 3))
    (entry,) = service._standing.requests.values()
    assert entry.receipt is not None
    assert entry.receipt["audit"]["sentence"].startswith("Not audited: no client any more")
