"""Python objects between this program's own processes: tensors travel as raw bytes beside the pickle, never in it.

Only ever between a process and the workers it started. What comes from elsewhere is never unpickled
(see ``backends/wire.py``).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

import cloudpickle
import torch
from torch import Tensor

__all__ = ["CannotTravel", "pack", "receive", "send", "unpack"]


class CannotTravel(RuntimeError):
    """Something of the user's cannot be sent to another process."""


def pack(value: object) -> list[memoryview]:
    """Frames of bytes: the pickle first, then the tensors', which are views, not copies.

    Raises:
        CannotTravel: something in it cannot be pickled.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    try:
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    except Exception as error:  # whatever a __reduce__ raises
        raise CannotTravel(f"this cannot travel between processes ({error}): run with workers=1") from error
    return [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]


def unpack(frames: Sequence[Any]) -> Any:
    """What `pack` was given; its tensors lie in the frames' memory."""
    return pickle.loads(frames[0], buffers=frames[1:])


def send(stream: BinaryIO, frames: Sequence[memoryview]) -> None:
    """Write frames to a pipe."""
    sizes = [len(frame) for frame in frames]
    head = b"".join(number.to_bytes(8, "little") for number in (len(sizes), *sizes))
    for data in (memoryview(head), *frames):
        while len(data):
            data = data[stream.write(data) :]  # a raw pipe may take a part only
    stream.flush()


def receive(stream: BinaryIO) -> list[bytearray]:
    """Read the frames of one `send`.

    Raises:
        EOFError: the other side is gone.
    """
    count = int.from_bytes(_read(stream, 8), "little")
    sizes = _read(stream, 8 * count)
    return [_read(stream, int.from_bytes(sizes[8 * i : 8 * i + 8], "little")) for i in range(count)]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle (classes of ``__main__`` and lambdas travel by value), with plain CPU tensors out of band."""

    def reducer_override(self, obj: Any) -> Any:
        plain = type(obj) is Tensor and obj.device.type == "cpu" and obj.layout == torch.strided
        if plain and obj.is_contiguous() and not obj.requires_grad:
            raw = obj.reshape(-1).view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(raw), obj.dtype, tuple(obj.shape))
        return super().reducer_override(obj)


def _tensor(raw: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if len(raw) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(shape)


def _read(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        read = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            raise EOFError("the other side is gone")
        done += read
    return data
