#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Converts a Hugging Face checkpoint folder to a GGUF file.

Tensors are read, changed and written a few rows at a time, so the memory it
takes does not grow with the model. What is not known to give the model's own
results is refused with one line.
"""

import argparse
import pathlib
import sys

if sys.version_info < (3, 10):
    sys.exit("hf_to_gguf: needs Python 3.10 or later")
try:
    import numpy as np
except ImportError:
    sys.exit(
        "hf_to_gguf: needs NumPy for this Python: apt install python3-numpy,"
        " or pip install numpy"
    )

import architectures
import gguf_file
import vocabulary
from checkpoint import Checkpoint, Refused

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402

PART_BYTES = 8 << 20  # of float32 values that are in memory at a time
OWN_TYPES = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}


def type_of(source, shape, wanted):
    """The type in the file: vectors are F32, rows of no whole blocks F16."""
    if len(shape) == 1:
        return gguf_file.F32
    kind = gguf_file.TYPES[wanted or OWN_TYPES[source.dtype]]
    return gguf_file.F16 if shape[-1] % kind.block else kind


def parts_of(source, shape, order, plus, kind):
    """A function that gives the tensor's bytes, as gguf_file wants it."""

    def parts():
        if len(shape) == 1:
            blocks = [slice(None)]
        else:
            step = max(1, PART_BYTES // (4 * shape[1]))
            rows = range(0, shape[0], step)
            blocks = [slice(i, min(i + step, shape[0])) for i in rows]
        for rows in blocks:
            values = source.rows(rows if order is None else order[rows])
            if plus:
                values = values + np.float32(plus)
            try:
                yield gguf_file.encode(values, kind)
            except gguf_file.OutOfRange:
                raise Refused(
                    f"tensor {source.name!r} holds a value that"
                    f" {kind.name} cannot"
                ) from None

    return parts


def convert(folder, file, wanted=None, pre=None):
    """Returns what the file has no place for, a line each."""
    checkpoint = Checkpoint(folder)
    writer = gguf_file.Writer()
    model = architectures.Model(checkpoint, writer)
    writer.add("general.architecture", "str", model.arch)
    writer.add("general.name", "str", checkpoint.name)
    found = checkpoint.tensors()
    tensors = list(model.tensors(found))
    kinds = [
        type_of(source, shape, wanted) for _, shape, source, *_ in tensors
    ]
    matrices = [
        kind
        for kind, (_, shape, *_) in zip(kinds, tensors, strict=True)
        if len(shape) > 1
    ]
    most = max(matrices, key=matrices.count)
    writer.add("general.file_type", "u32", most.file_type)
    if gguf_file.Q8_0 in kinds:
        writer.add("general.quantization_version", "u32", 2)
    model.add_keys()
    words, templates = vocabulary.read(checkpoint, model.vocab, pre)
    try:
        vocabulary.add_keys(writer, words, templates)
    except UnicodeEncodeError:
        raise Refused(f"{folder}: a token or a template is no text") from None
    for (name, shape, source, order, plus), kind in zip(
        tensors, kinds, strict=True
    ):
        parts = parts_of(source, shape, order, plus, kind)
        writer.add_tensor(name, shape, kind, parts)
    for name, values in model.extra.items():
        raw = gguf_file.encode(values, gguf_file.F32)
        writer.add_tensor(
            name, values.shape, gguf_file.F32, lambda raw=raw: [raw]
        )
    writer.write(file)
    return checkpoint.notes


def say(what):
    """One line, whatever a checkpoint's texts have in them."""
    line = " ".join(str(what).splitlines())
    print(f"hf_to_gguf: {line}", file=sys.stderr)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, metavar="CHECKPOINT")
    parser.add_argument(
        "-o", "--output", required=True, type=pathlib.Path, metavar="OUT.gguf"
    )
    parser.add_argument(
        "--type",
        choices=gguf_file.TYPES,
        help="of matrices; default: the checkpoint's own",
    )
    parser.add_argument(
        "--pre", metavar="NAME", help="the pre-tokenizer's name in GGUF"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="even if OUT.gguf exists"
    )
    options = parser.parse_args(arguments)
    try:
        if options.output.exists():
            # Overwriting puts another file in its place: no device, no folder.
            if not options.output.is_file():
                raise Refused(f"{options.output}: not a regular file")
            if not options.overwrite:
                raise Refused(
                    f"{options.output}: exists already (see --overwrite)"
                )
        inputs = options.folder.glob("*")
        with output_file.writing(options.output, "wb", inputs) as file:
            notes = convert(options.folder, file, options.type, options.pre)
    except (Refused, OSError) as error:
        say(error)
        return 1
    for note in notes:
        say(f"not kept: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
