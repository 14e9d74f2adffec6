// SPDX-License-Identifier: Apache-2.0
// Text to token ids and back, with the vocabulary of a GGUF file. Kinds of tokenizers are rows of a
// table in tokenizer.c: "llama", SentencePiece BPE that always merges the pair with the best score,
// with byte fallback, and "gpt2", byte-pair encoding by a list of merges with a pre-tokenizer that
// the file names. Ids equal those of llama.cpp. Immutable after opening, so threads may share one;
// token texts stay in the file's map. Any bytes are accepted as text; "llama" gives them back as
// they are, "gpt2" gives U+FFFD for each byte that is no UTF-8.
#ifndef INST_HOST_MODEL_TOKENIZER_H
#define INST_HOST_MODEL_TOKENIZER_H

#include "host/model/gguf.h"

struct tokenizer;

enum { TOKENIZER_NONE = UINT32_MAX }; // "no such token"

// The gguf must outlive the tokenizer. Unknown kinds are INST_ENOTSUP and named.
int tokenizer_open(struct tokenizer **out, const struct gguf *gguf, struct budget *budget,
                   struct inst_msg *msg);
void tokenizer_free(struct tokenizer *tokenizer); // NULL is fine

const char *tokenizer_kind(const struct tokenizer *tokenizer);
uint32_t tokenizer_count(const struct tokenizer *tokenizer);
uint32_t tokenizer_bos(const struct tokenizer *tokenizer); // or TOKENIZER_NONE
uint32_t tokenizer_eos(const struct tokenizer *tokenizer);
bool tokenizer_adds_bos(const struct tokenizer *tokenizer);
// True for every token that ends generation: eos, eot, eom and the known names of such tokens.
bool tokenizer_is_end(const struct tokenizer *tokenizer, uint32_t id);
bool tokenizer_is_control(const struct tokenizer *tokenizer, uint32_t id);
// Raw text of a token as the file has it (with U+2581 for spaces, or visible characters for bytes).
struct gguf_string tokenizer_text(const struct tokenizer *tokenizer, uint32_t id);
// Id of a token by that text, or TOKENIZER_NONE.
uint32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, uint64_t bytes);

// A growing list of ids; zero-initialise with the budget set. The owner calls token_list_free.
struct token_list {
    uint32_t *ids;
    uint64_t count, capacity;
    struct budget *budget;
};
void token_list_free(struct token_list *list);
int token_list_add(struct token_list *list, uint32_t id, struct inst_msg *msg);

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,   // bos and eos where the file asks for them
    TOKENIZER_PARSE_SPECIAL = 2, // the texts of control tokens in the text become those tokens
    TOKENIZER_SHOW_SPECIAL = 4,  // decoding: control tokens print their text
    TOKENIZER_CONTINUES = 8,     // text goes before this text: no space is added at its start
};

// Appends the ids of `text` to the list (on an error the list keeps what it had). Time O(n log n);
// working memory from the list's budget, a few KiB for ordinary text, more for endless words.
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, uint64_t bytes,
                     unsigned flags, struct token_list *list, struct inst_msg *msg);

// The same for a text in which the words of a template and of strangers take turns; the spans'
// bytes add up to the text's. Tokens are formed across their borders, but what a stranger writes is
// never a control token, nor a user-defined one that structures chats, and no part of one.
struct token_span {
    uint64_t bytes;
    bool foreign;
};
int tokenizer_encode_spans(const struct tokenizer *tokenizer, const char *text,
                           const struct token_span *spans, uint64_t n_spans, unsigned flags,
                           struct token_list *list, struct inst_msg *msg);

// Bytes of one token as it reads inside a text; the spaces that a token starts with are kept.
// `out` has room for tokenizer_piece_room() bytes. An id out of range gives 0 bytes.
uint32_t tokenizer_piece_room(const struct tokenizer *tokenizer);
uint32_t tokenizer_piece(const struct tokenizer *tokenizer, uint32_t id, unsigned flags, char *out);

// Bytes of a whole text. As llama.cpp does, one leading space of the first token is dropped where
// the vocabulary adds a space before text. Writes at most `capacity` bytes and returns how many
// there are.
uint64_t tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, uint64_t count,
                          unsigned flags, char *out, uint64_t capacity);

#endif
