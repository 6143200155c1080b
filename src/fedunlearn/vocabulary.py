"""What an experiment's file can name by its kind: who holds what, how they train, what is asked, who answers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError
from pydantic_core import InitErrorDetails

from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.data.partition import Dirichlet, Iid
from fedunlearn.data.treatment import Backdoored, Turned
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.perturbation import PERTURBATIONS
from fedunlearn.presets import presets
from fedunlearn.problems import again, meant, short, wrong
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Exponential
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, ForgetShare
from fedunlearn.task import Method
from fedunlearn.tomlkinds import Kinds

__all__ = [
    "ALL_KINDS",
    "METHODS",
    "Contender",
    "Images",
    "Optimizer",
    "Partition",
    "Request",
    "Schedule",
    "StopRule",
    "Treatment",
]


class _Methods(Kinds):
    """Methods, whose tables may name a preset; what stands beside it goes before it."""

    def completed(self, name: str, entries: dict[str, Any]) -> dict[str, Any]:
        """See `Kinds`."""
        wanted = entries.pop("preset", None)
        known = presets(name)
        if wanted is None:
            return entries
        if not isinstance(wanted, str) or wanted not in known:
            there = f"there is none of {name}" if not known else f"must be {' or '.join(known)}{meant(wanted, known)}"
            problem = wrong("preset", f"{there}, not {short(wanted)}", wanted)
            raise ValidationError.from_exception_data("preset", [problem])
        return {**known[wanted].values, **entries}


class _Requests(Kinds):
    """Requests; an array of them is several at once."""

    def __call__(self, table: Any) -> Any:
        """See `Kinds`."""
        if isinstance(table, AnyOf):
            return table
        if not isinstance(table, (list, tuple)):
            return super().__call__(table)
        if not table:
            raise ValueError("must name one request at least")
        problems: list[InitErrorDetails] = []
        requests = []
        for position, entry in enumerate(table):
            try:
                requests.append(super().__call__(entry))
            except ValidationError as error:
                problems += [{**again(one), "loc": (position, *one["loc"])} for one in error.errors()]
            except ValueError as error:
                problems.append({**wrong("request", str(error), entry), "loc": (position,)})
        if problems:
            raise ValidationError.from_exception_data("request", problems)
        return requests[0] if len(requests) == 1 else AnyOf(tuple(requests))


_PARTITIONS = Kinds(Iid=Iid, Dirichlet=Dirichlet)
_IMAGES = Kinds(Cropped=Cropped, Flipped=Flipped)
_TREATMENTS = Kinds(Turned=Turned, Backdoored=Backdoored)
_OPTIMIZERS = Kinds(SGD=SGD, Adam=Adam)
_SCHEDULES = Kinds(Constant=Constant, Cosine=Cosine, Exponential=Exponential)
_REQUESTS = _Requests(Client=ForgetClient, Class=ForgetClass, Instances=ForgetInstances, Share=ForgetShare)
_STOP_RULES = Kinds(Recovered=Recovered)
METHODS = _Methods(Method, **CATALOGUE)
ALL_KINDS = (
    _PARTITIONS,
    _IMAGES,
    _TREATMENTS,
    _OPTIMIZERS,
    _SCHEDULES,
    _REQUESTS,
    _STOP_RULES,
    METHODS,
    PERTURBATIONS,
)

Partition = Annotated[Any, BeforeValidator(_PARTITIONS)]
Images = Annotated[Any, BeforeValidator(_IMAGES)]
Treatment = Annotated[Any, BeforeValidator(_TREATMENTS)]
Optimizer = Annotated[Any, BeforeValidator(_OPTIMIZERS)]
Schedule = Annotated[Any, BeforeValidator(_SCHEDULES)]
Request = Annotated[Any, BeforeValidator(_REQUESTS)]
StopRule = Annotated[Any, BeforeValidator(_STOP_RULES)]
Contender = Annotated[Any, BeforeValidator(METHODS)]
