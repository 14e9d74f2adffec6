// SPDX-License-Identifier: Apache-2.0
// Classes of characters, of one version of Unicode whatever the installed libraries know: token ids
// must not depend on them. Which version, and why, is in docs/tokenizers.md.
#ifndef INST_HOST_MODEL_UNICODE_H
#define INST_HOST_MODEL_UNICODE_H

#include <stdint.h>

// General categories by their first letter, but for white space, which some controls are too.
enum unicode_class {
    UNICODE_OTHER, // C, unassigned characters and surrogates among them
    UNICODE_LETTER,
    UNICODE_MARK,
    UNICODE_NUMBER,
    UNICODE_PUNCTUATION,
    UNICODE_SYMBOL,
    UNICODE_SPACE,
};

// Neighbours of one class: [first, end).
struct unicode_run {
    uint32_t first, end;
    enum unicode_class class;
};

// The run that the code point (up to 0x10ffff) is in.
struct unicode_run unicode_run_of(uint32_t point);

#endif
