# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF file of version 3, one tensor after the other.

The header needs the size of every tensor, so all are announced first and their
data is written in the same order later, a few rows at a time.
"""

import struct
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 32
Q8_0_BLOCK = 32
F16_MAX = 65504

# How a value's type is written: struct format and the number in the file.
SCALARS = {
    "u32": ("<I", 4),
    "i32": ("<i", 5),
    "f32": ("<f", 6),
    "bool": ("<?", 7),
    "u64": ("<Q", 10),
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorType:
    name: str
    number: int  # in a tensor's entry
    file_type: int  # of a file that is mostly this
    block: int  # a row has whole blocks
    block_bytes: int


F32 = TensorType("f32", 0, 0, 1, 4)
F16 = TensorType("f16", 1, 1, 1, 2)
Q8_0 = TensorType("q8_0", 8, 7, Q8_0_BLOCK, Q8_0_BLOCK + 2)
BF16 = TensorType("bf16", 30, 32, 1, 2)
TYPES = {t.name: t for t in (F32, F16, BF16, Q8_0)}


class OutOfRange(ValueError):
    """A value that the type cannot hold."""


def to_bf16(values):
    """Rounds to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")


def to_q8_0(values):
    """Blocks of a fp16 scale and 32 integers, of rows of whole blocks."""
    blocks = values.reshape(-1, Q8_0_BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    if np.any(scale > F16_MAX):
        raise OutOfRange
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
    scaled = blocks * inverse
    # Halves go away from zero.
    whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    out = np.empty((len(blocks), Q8_0.block_bytes), np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = whole.astype(np.int8).view(np.uint8)
    return out


def encode(values, kind):
    """float32 values as bytes of this type."""
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise OutOfRange
    if kind is F32:
        return values.astype("<f4").tobytes()
    if kind is BF16:
        return to_bf16(values).tobytes()
    if kind is Q8_0:
        return to_q8_0(values).tobytes()
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if not np.isfinite(halves).all():
        raise OutOfRange
    return halves.tobytes()


def _string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


class Writer:
    def __init__(self):
        self._keys = []
        self._tensors = []
        self._offset = 0

    def add(self, name, kind, value):
        """A key of a scalar type or a string."""
        if kind == "str":
            raw = struct.pack("<I", STRING) + _string(value)
        else:
            code, number = SCALARS[kind]
            raw = struct.pack("<I", number) + struct.pack(code, value)
        self._keys.append(_string(name) + raw)

    def add_array(self, name, kind, values):
        raw = [_string(name), struct.pack("<I", ARRAY)]
        number = STRING if kind == "str" else SCALARS[kind][1]
        raw.append(struct.pack("<IQ", number, len(values)))
        if kind == "str":
            raw.extend(map(_string, values))
        else:
            code = SCALARS[kind][0]
            raw.append(struct.pack(f"<{len(values)}{code[1:]}", *values))
        self._keys.append(b"".join(raw))

    def add_tensor(self, name, shape, kind, parts):
        """`parts` is called when it is the tensor's turn and gives its bytes
        piece by piece; shape as in NumPy, rows first."""
        count = 1
        for n in shape:
            count *= n
        size = count // kind.block * kind.block_bytes
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        entry = struct.pack("<IQ", kind.number, self._offset)
        self._tensors.append((_string(name) + dims + entry, size, parts))
        self._offset += -(-size // ALIGNMENT) * ALIGNMENT

    def write(self, file):
        file.write(b"GGUF")
        counts = len(self._tensors), len(self._keys)
        file.write(struct.pack("<IQQ", 3, *counts))
        file.writelines(self._keys)
        file.writelines(entry for entry, _, _ in self._tensors)
        for _, size, parts in self._tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            start = file.tell()
            for part in parts():
                file.write(part)
            if file.tell() - start != size:
                raise AssertionError("a tensor of another size than announced")
        file.write(bytes(-file.tell() % ALIGNMENT))
