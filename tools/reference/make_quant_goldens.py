#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Blocks of every block type and the values that the gguf package gives them.

Writes tests/data/quants.bin, which tests/kernels reads: per type a header of
four little-endian 32-bit numbers (GGUF type, blocks, bytes per block, elements
per block), the blocks, then their values as fp32. Blocks are random bytes, so
every code and every scale inside a block is met; the fp16 scales and minima
run through ordinary and extreme values (zeros of both signs, subnormals, the
largest). No value is infinite or NaN.
"""

import argparse
import pathlib
import struct
import sys

import gguf
import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

# Type -> where its fp16 numbers lie in a block.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
}
ELEMENTS = 1536  # of each type: 48 blocks of 32 or 6 of 256
EXTREME = np.array(
    [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, 1.0], np.float16
)


def random_blocks(random, qtype, offsets):
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    count = ELEMENTS // block_elements
    blocks = random.integers(0, 256, (count, block_bytes), np.uint8)
    for number, offset in enumerate(offsets):
        halves = random.normal(0, 0.05, count).astype(np.float16)
        # Half of the blocks are extreme; scale and minimum not in step.
        for i in range(0, count, 2):
            halves[i] = EXTREME[(i // 2 + 3 * number) % len(EXTREME)]
        blocks[:, offset : offset + 2] = halves[:, None].view(np.uint8)
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default="tests/data/quants.bin")
    options = parser.parse_args()
    random = np.random.Generator(np.random.PCG64(4))
    with output_file.writing(options.output, "wb") as out:
        for name, offsets in HALVES.items():
            qtype = gguf.GGMLQuantizationType[name]
            blocks = random_blocks(random, qtype, offsets)
            values = gguf.dequantize(blocks, qtype).astype("<f4")
            assert np.isfinite(values).all()
            count, block_bytes = blocks.shape
            elements = values.size // count
            out.write(struct.pack("<4I", qtype, count, block_bytes, elements))
            out.write(blocks.tobytes())
            out.write(values.tobytes())


if __name__ == "__main__":
    main()
