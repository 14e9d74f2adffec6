# SPDX-License-Identifier: Apache-2.0
"""Makes the weights of the test's checkpoints again: every value follows from
its tensor's name and place, so only names and shapes have to be kept."""

import json
import math
import struct
import zlib

import numpy as np

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def _uniform(name, count):
    """Pseudorandom float32 in [-1, 1), by splitmix64."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(name.encode()) << 20)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    # 11 bits: values that F16 and BF16 hold but for the scale.
    return ((z >> np.uint64(53)).astype(np.float32) - 1024) / 1024


def weights(name, shape, dtype, norm):
    """float32 values that `dtype` holds exactly; norms are around `norm`."""
    values = _uniform(name, math.prod(shape)).reshape(shape)
    if len(shape) > 1:
        values = values * np.float32(2 / math.sqrt(shape[-1]))
    elif name.endswith("bias"):
        values = values * np.float32(0.3)
    else:
        values = np.float32(norm) + values * np.float32(0.3)
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return values


def encoded(name, shape, dtype, norm):
    values = weights(name, shape, dtype, norm)
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f4").tobytes()


def write_safetensors(path, tensors, norm):
    """tensors: [name, shape, dtype] each."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype in tensors:
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(encoded(*tensor, norm) for tensor in tensors)


def write_sharded(folder, tensors, norm, shards):
    """The tensors in turn over several files, with their index."""
    where = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = tensors[i::shards]
        write_safetensors(folder / name, part, norm)
        where |= {tensor[0]: name for tensor in part}
    index = {"metadata": {}, "weight_map": where}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
