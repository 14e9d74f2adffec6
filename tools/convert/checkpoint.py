# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face checkpoint folder: its JSON files and its tensors.

Tensors are read where they lie: safetensors files are mapped and need no
library, pytorch_model.bin needs PyTorch, which maps them, too. Rows become
float32 only when they are asked for.
"""

import json
import math
import mmap
import pathlib
import struct
from dataclasses import dataclass

import numpy as np

HEADER_MAX = 100_000_000  # bytes; the format's own limit
DIMENSIONS_MAX = 4
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
TORCH_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}


class Refused(Exception):
    """What cannot be converted, in one line for the user."""


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple
    dtype: str  # a key of DTYPES
    read: object  # rows (an index or a slice of the first dimension) -> values

    def rows(self, which):
        """These rows in float32."""
        values = self.read(which)
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            return values.astype(np.float32)


def _check_entry(path, name, entry, data_bytes):
    """The entry's dtype, shape and place, or a refusal."""
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        good = all(isinstance(n, int) for n in (*shape, begin, end))
        # An empty tensor could be of any size in its other directions.
        good = good and min(shape, default=1) > 0 and begin >= 0
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or len(shape) > DIMENSIONS_MAX or end > data_bytes:
        raise Refused(f"{path}: the entry of tensor {name!r} is malformed")
    if dtype not in DTYPES:
        raise Refused(f"{path}: tensor {name!r} is of type {dtype}")
    if end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise Refused(
            f"{path}: tensor {name!r} has another size than its shape"
        )
    return dtype, shape, begin


def read_safetensors(path):
    with open(path, "rb") as file:
        try:
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise Refused(f"{path}: not a safetensors file") from None
    size = struct.unpack_from("<Q", raw)[0] if len(raw) > 8 else 0
    try:
        if not 2 <= size <= min(HEADER_MAX, len(raw) - 8):
            raise ValueError
        header = json.loads(raw[8 : 8 + size])
        entries = dict(header.items())
    except (ValueError, AttributeError, RecursionError):
        raise Refused(f"{path}: not a safetensors file") from None
    data = np.frombuffer(raw, np.uint8, offset=8 + size)
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        dtype, shape, begin = _check_entry(path, name, entry, len(data))
        width = np.dtype(DTYPES[dtype]).itemsize
        part = data[begin : begin + math.prod(shape) * width]
        values = part.view(DTYPES[dtype]).reshape(shape)
        tensors[name] = Tensor(name, shape, dtype, values.__getitem__)
    return tensors


def read_pytorch(path):
    try:
        import torch
    except ImportError:
        raise Refused(
            f"{path}: needs PyTorch to be read (pip install torch);"
            " safetensors files do not"
        ) from None
    try:
        loaded = torch.load(
            path, map_location="cpu", mmap=True, weights_only=True
        )
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        line = str(error).strip().split("\n")[0]
        raise Refused(f"{path}: PyTorch cannot read it: {line}") from None
    except Exception as error:  # of the pickle, whose kinds are many
        kind = type(error).__name__
        raise Refused(f"{path}: PyTorch cannot read it: {kind}") from None

    if not isinstance(loaded, dict) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise Refused(f"{path}: not a table of tensors")

    def tensor(name, value):
        dtype = TORCH_DTYPES.get(str(value.dtype))
        if not dtype:
            raise Refused(f"{path}: tensor {name!r} is of type {value.dtype}")

        def read(rows):
            if isinstance(rows, np.ndarray):
                rows = torch.from_numpy(rows)
            part = value[rows].contiguous()
            if dtype == "BF16":
                return part.view(torch.int16).numpy().view(np.uint16)
            return part.numpy()

        return Tensor(name, tuple(value.shape), dtype, read)

    return {name: tensor(name, value) for name, value in loaded.items()}


# Kinds of files with weights, the best first: one file, its index, its reader.
WEIGHTS = (
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", read_pytorch),
)


class Checkpoint:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.notes = []  # what the file has no place for, a line each
        if not self.folder.is_dir():
            raise Refused(f"{folder}: not a folder")
        self.config = self.json("config.json")
        if self.config is None:
            raise Refused(f"{folder}: there is no config.json in it")

    @property
    def name(self):
        return self.folder.resolve().name

    def path(self, name):
        """The file's path, None when there is none."""
        path = self.folder / name
        return path if path.is_file() else None

    def text(self, name):
        """A text file, however its lines end and with or without the mark
        that editors put in front."""
        path = self.folder / name
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Refused(f"{path}: not UTF-8") from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def json(self, name):
        """An object from a file; None when there is none."""
        path = self.path(name)
        if not path:
            return None
        text = self.text(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{path}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refused(f"{path}: not a JSON object")
        return value

    def tensors(self):
        """All tensors by name."""
        for name, read in WEIGHTS:
            index = self.json(f"{name}.index.json")
            if index is not None:
                return self._sharded(f"{name}.index.json", index, read)
            if self.path(name):
                return read(self.path(name))
        names = " nor ".join(name for name, _ in WEIGHTS)
        raise Refused(f"{self.folder}: neither {names} is in it")

    def _sharded(self, index_name, index, read):
        where = index.get("weight_map")
        if not isinstance(where, dict) or not all(
            isinstance(shard, str) and pathlib.Path(shard).name == shard
            for shard in where.values()
        ):
            raise Refused(f"{self.folder / index_name}: no weight_map in it")
        tensors = {}
        for shard in sorted(set(where.values())):
            if not self.path(shard):
                raise Refused(f"{self.folder / shard}: there is no such file")
            tensors |= read(self.path(shard))
        for name, shard in where.items():
            if name not in tensors:
                raise Refused(
                    f"{self.folder / shard}: no tensor {name!r} in it"
                )
        return tensors
