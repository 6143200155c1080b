"""What a Flower message of this package holds: a text of JSON and, where it speaks of tensors, their bytes.

Nothing here waits for torch.
"""

from __future__ import annotations

import json
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

__all__ = [
    "HELLO",
    "REQUESTS",
    "WORK",
    "MessageError",
    "body_record",
    "parcel",
    "said",
    "talk",
    "unpacked",
]

WORK = "work"
"""Action of an order: of ``train``, and of ``evaluate`` in that phase."""
HELLO = "query.hello"
REQUESTS = "query.requests"

_LONGEST_TALK = 2**25
"""Characters of a query or of its answer."""

_TEXT, _TENSORS, _BODY = "fedunlearn", "tensors", "body"


class MessageError(ValueError):
    """A message that holds something else."""


def parcel(text: str, tensors: ArrayRecord | bytes = b"") -> RecordDict:
    """A message's content: a text and the bytes of tensors, or a record of them that several messages share."""
    content = RecordDict({_TEXT: ConfigRecord({"text": text})})
    if tensors:
        content[_TENSORS] = tensors if isinstance(tensors, ArrayRecord) else body_record(tensors)
    return content


def body_record(body: bytes) -> ArrayRecord:
    """Bytes of tensors as Flower sends them: as they are."""
    return ArrayRecord({_BODY: Array("uint8", (len(body),), "raw", body)})


def unpacked(message: Message) -> tuple[str, bytes]:
    """Text and bytes of a message.

    Raises:
        MessageError: it holds something else.
    """
    records = dict(message.content) if message.has_content() else {}
    text, tensors = records.pop(_TEXT, None), records.pop(_TENSORS, None)
    if records or not isinstance(text, ConfigRecord) or text.keys() != {"text"} or not isinstance(text["text"], str):
        raise MessageError("a message without exactly one text")
    if tensors is None:
        return text["text"], b""
    if not isinstance(tensors, ArrayRecord) or tensors.keys() != {_BODY} or tensors[_BODY].stype != "raw":
        raise MessageError("a message whose tensors are not one row of bytes")
    return text["text"], tensors[_BODY].data


def talk(content: dict[str, Any]) -> RecordDict:
    """The content of a query, or of its answer: plain values."""
    return parcel(json.dumps(content, separators=(",", ":"), allow_nan=False))


def said(message: Message) -> dict[str, Any]:
    """What `talk` was given.

    Raises:
        MessageError: it is something else, or too long.
    """
    text, body = unpacked(message)
    if len(text) > _LONGEST_TALK or body:
        raise MessageError(f"a query or its answer has at most {_LONGEST_TALK} characters, and no tensors")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("a message whose text is no JSON") from None
    if not isinstance(content, dict):
        raise MessageError("a message whose text is no table")
    return content
