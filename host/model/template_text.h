// SPDX-License-Identifier: Apache-2.0
// What a template's text says as a program of Jinja, in the settings of Hugging Face Transformers
// (trim_blocks, lstrip_blocks): its print is the same for two texts exactly when the tokens of the
// language are, so white space counts where it is rendered and only there, comments never. A system
// text that the template has of its own can be taken out. Nothing is evaluated.
#ifndef INST_HOST_MODEL_TEMPLATE_TEXT_H
#define INST_HOST_MODEL_TEMPLATE_TEXT_H

#include "host/model/gguf.h"

// What a tag's end and the start of an expression are printed as.
#define TEMPLATE_END      "\5"
#define TEMPLATE_VARIABLE "\2"

// Where the own system text stands: in a string literal directly behind `code` (as it is printed,
// see template_text.c; "" is any), between `before` and `after` in it. With `code_after` it goes
// on, behind a date, in the next literal directly behind that.
struct template_place {
    const char *code, *before, *after, *code_after;
};

// Its parts as they stand in the literals, escapes and all.
struct template_own {
    struct gguf_string part[2];
};

// False when there is none, or an empty one.
bool template_text_own(struct gguf_string text, const struct template_place *place,
                       struct template_own *own);
// The print of the text. With a place, that of all texts that differ in their own system text
// alone: what stands in the place, and literals elsewhere that say the same. 0: no text of this
// language.
uint64_t template_text_print(struct gguf_string text, const struct template_place *place,
                             const struct template_own *own);

// Without the white space at an end, which is what Python's str.strip takes for it.
struct gguf_string template_text_trim(struct gguf_string s, bool start, bool end);

#endif
