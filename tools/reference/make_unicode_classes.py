#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The classes of characters that pre-tokenizers ask for, as runs: host/model/unicode_runs.h.

    make_unicode_classes.py host/model/unicode_runs.h

They are those of one named version of Unicode, the one that llama.cpp's tables have, and come from
Python's unicodedata where that is of this version (Python 3.13) or else from unicodedata2 (PyPI).
tests/data/tokens_points.json holds what llama.cpp makes of every code point.
"""
import os
import sys
import unicodedata

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import output_file  # noqa: E402

VERSION = "15.1.0"

if unicodedata.unidata_version != VERSION:
    try:
        import unicodedata2 as unicodedata
    except ImportError:
        sys.exit("this Python has Unicode %s: pip install unicodedata2==%s"
                 % (unicodedata.unidata_version, VERSION))
    if unicodedata.unidata_version != VERSION:
        sys.exit("unicodedata2 has Unicode %s, not %s" % (unicodedata.unidata_version, VERSION))

# As in enum unicode_class.
CLASSES = {"L": 1, "M": 2, "N": 3, "P": 4, "S": 5, "Z": 6}
CONTROLS_THAT_ARE_SPACE = [*range(0x09, 0x0e), 0x85]  # the rest of White_Space is category Z


def class_of(point):
    if point in CONTROLS_THAT_ARE_SPACE:
        return CLASSES["Z"]
    return CLASSES.get(unicodedata.category(chr(point))[0], 0)


def main():
    runs, last = [], None
    for point in range(0x110000):
        now = class_of(point)
        if now != last:
            runs.append(point << 3 | now)
            last = now
    with output_file.writing(sys.argv[1]) as f:
        f.write("// SPDX-License-Identifier: Apache-2.0\n"
                "// Made by tools/reference/make_unicode_classes.py from Unicode %s: where a run of\n"
                "// characters of one class begins, shifted left by 3, with enum unicode_class below.\n"
                "// clang-format off\n" % VERSION)
        for i in range(0, len(runs), 10):
            f.write(" ".join("0x%06x," % run for run in runs[i:i + 10]) + "\n")


main()
