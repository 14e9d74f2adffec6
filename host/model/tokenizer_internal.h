// SPDX-License-Identifier: Apache-2.0
// What the parts of the tokenizer share: the vocabulary (tokenizer_vocab.c), what its tokens mean
// by name (tokenizer_names.c), finding special ones in a text (tokenizer_special.c), the kinds of
// encoders, one file each (tokenizer_spm.c, tokenizer_bpe.c), and what all of it is for
// (tokenizer.c).
#ifndef INST_HOST_MODEL_TOKENIZER_INTERNAL_H
#define INST_HOST_MODEL_TOKENIZER_INTERNAL_H

#include "host/model/tokenizer.h"

enum { TOKEN_BYTES_MAX = 65535 };

enum token_attribute {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 4,
    TOKEN_USER = 8,
    TOKEN_BYTE = 16,
    TOKEN_END = 32,
    TOKEN_RSTRIP = 64,  // swallows the white space that follows it in a text
    TOKEN_MARKER = 128, // structure of a chat: never found in a stranger's words
    TOKEN_HIDDEN = TOKEN_UNKNOWN | TOKEN_CONTROL, // matched and shown only when asked for
    TOKEN_SPECIAL = TOKEN_HIDDEN | TOKEN_USER,    // matched before anything else
};

struct vocab_token {
    uint32_t offset, bytes; // of its text in `texts`
};

// A piece of a text being encoded: either text or, token != TOKENIZER_NONE, a special token.
struct fragment {
    const char *text;
    uint64_t bytes;
    uint32_t token;
    bool continues; // text goes before it
};

struct tokenizer_kind {
    const char *name;
    // Sets what holds where the file has no key: bos, eos, unk, add_bos and so on.
    int (*defaults)(struct tokenizer *t, struct inst_msg *msg);
    int (*open)(struct tokenizer *t, struct inst_msg *msg); // the vocabulary is there
    void (*close)(struct tokenizer *t);                     // also after an open that failed
    int (*encode)(const struct tokenizer *t, const struct fragment *fragment, uint64_t count,
                  struct token_list *list, struct inst_msg *msg);
    // The bytes that the text of a normal token stands for; never more than the text has.
    uint32_t (*plain)(const char *text, uint32_t bytes, char *out);
};

struct tokenizer {
    const struct tokenizer_kind *kind;
    const struct gguf *gguf;
    struct budget *budget;
    uint32_t count;
    const char *texts; // in the file
    struct vocab_token *token;
    uint8_t *attribute;    // enum token_attribute, one per token
    const uint8_t *scores; // count floats or int32, or NULL
    bool scores_are_int;
    uint32_t *slot; // hash table text -> id + 1, 0 = free
    uint64_t slot_mask;
    uint32_t bytes_max; // of the longest token

    struct special *special;
    uint32_t bos, eos, unk;
    bool add_bos, add_eos, add_space_prefix;
    uint32_t byte_id[256];

    uint64_t *pairs; // kind "llama": which pairs of characters stand side by side in any token
    uint64_t pair_mask;
    struct bpe *bpe; // kind "gpt2"
};

static inline const char *token_text(const struct tokenizer *t, uint32_t id)
{
    return t->texts + t->token[id].offset;
}

// tokenizer_vocab.c
int vocab_open(struct tokenizer *t, struct inst_msg *msg);
void vocab_close(struct tokenizer *t); // also after an open that failed
float token_score(const struct tokenizer *t, uint32_t id);
// The byte that a token like <0x0A> stands for, -1 when the text is no such name.
int vocab_byte(const char *text, uint32_t bytes);
// An id from a key. The default stays where the key is absent or names a token that does not exist,
// as converters do to say "none".
int vocab_read_id(const struct tokenizer *t, const char *key, uint32_t *id, struct inst_msg *msg);

// tokenizer_names.c: attributes that follow from names and keys, once bos, eos and unk are known.
int names_mark(struct tokenizer *t, struct inst_msg *msg);

static inline int list_reserve(struct budget *budget, void **p, uint64_t *capacity, uint64_t used,
                               uint64_t need, uint64_t size, struct inst_msg *msg)
{
    return budget_list(budget, p, capacity, used, need, size, "tokenizing", msg);
}

struct fragments {
    struct fragment *at;
    uint64_t count, capacity;
};

// A text on its way to fragments.
struct source {
    const struct tokenizer *t;
    const char *text;
    uint64_t bytes;                 // a gigabyte at most
    const struct token_span *spans; // none: all of it is the caller's own
    uint64_t n_spans;
    bool parse; // control tokens too
    struct budget *budget;
    struct inst_msg *msg;
};

// Indexes the special tokens, once attributes are final.
int special_open(struct tokenizer *t, struct inst_msg *msg);
void special_close(struct tokenizer *t); // also after an open that failed
// Cuts the text at its special tokens. `f` is empty; the caller frees f->at, also on an error.
int special_cut(const struct source *src, struct fragments *f);

extern const struct tokenizer_kind tokenizer_spm, tokenizer_bpe;

#endif
