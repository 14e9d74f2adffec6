// SPDX-License-Identifier: Apache-2.0
// Pre-tokenizers: how a text is cut into the words that BPE works on. Which one a model was trained
// with is said by the key tokenizer.ggml.pre; each is a row of the table in tokenizer_pre.c.
#ifndef INST_HOST_MODEL_TOKENIZER_PRE_H
#define INST_HOST_MODEL_TOKENIZER_PRE_H

#include "host/model/gguf.h"

struct pre;

// INST_ENOTSUP, naming it, for a pre-tokenizer that is not in the table.
int pre_open(struct pre **out, const struct gguf *gguf, struct budget *budget,
             struct inst_msg *msg);
void pre_close(struct pre *pre); // NULL is fine

bool pre_adds_bos(const struct pre *pre);       // where the file does not say
bool pre_ignores_merges(const struct pre *pre); // a word that is a token is taken whole

// One splitter serves many texts of one thread; its memory comes from `budget`.
struct pre_splitter;
int pre_splitter_new(struct pre_splitter **out, const struct pre *pre, struct budget *budget,
                     struct inst_msg *msg);
void pre_splitter_free(struct pre_splitter *splitter); // NULL is fine

// Gives the words of the text in order; together they are the text with U+FFFD in the place of each
// byte that is no UTF-8. A word is valid until `word` returns; what it returns other than 0 ends
// the split and is returned.
int pre_split(struct pre_splitter *splitter, const char *text, uint64_t bytes,
              int (*word)(void *context, const char *text, uint64_t bytes), void *context,
              struct inst_msg *msg);

#endif
