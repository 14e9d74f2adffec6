// SPDX-License-Identifier: Apache-2.0
// Any bytes as a model file: opened, configured, bound, its vocabulary used. Everything the reader
// hands out is touched, so that a pointer outside the file is seen by the sanitizer. An input that
// ends with "PART" and the length of its first part is a model in two files.
#include "base/le.h"
#include "host/model/config.h"
#include "host/model/gguf_internal.h"
#include "host/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static volatile unsigned sink;

static void touch(const void *p, uint64_t bytes)
{
    const unsigned char *c = p;
    unsigned sum = 0;
    for (uint64_t i = 0; i < bytes; i++)
        sum += c[i];
    sink += sum;
}

static void use_tokenizer(const struct gguf *gguf, struct budget *budget)
{
    static const char text[] = "a b<s>\xf0\x9f\x98\x80 </s>\xff  x";
    struct tokenizer *t;
    struct inst_msg msg = {{0}};
    struct token_list list = {.budget = budget};
    if (tokenizer_open(&t, gguf, budget, &msg)) {
        if (!msg.text[0])
            abort();
        return;
    }
    if (!tokenizer_encode(t, text, sizeof text - 1, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL,
                          &list, &msg)) {
        char out[256];
        touch(out, tokenizer_decode(t, list.ids, list.count, TOKENIZER_SHOW_SPECIAL, out,
                                    sizeof out) < sizeof out
                       ? 1
                       : sizeof out);
    }
    char *piece = malloc(tokenizer_piece_room(t));
    for (uint32_t id = 0; id < tokenizer_count(t); id++)
        touch(piece, tokenizer_piece(t, id, id & 4, piece));
    free(piece);
    token_list_free(&list);
    tokenizer_free(t);
}

// The reader owns its part, so the second one is closed with it.
static int open_pair(struct gguf **out, const uint8_t *bytes, size_t size, struct budget *budget,
                     struct inst_msg *msg)
{
    size_t first = le_get32(bytes + size - 4);
    *out = NULL;
    if (first > size - 8 || first % 8)
        return inst_fail(msg, INST_EINVAL, "no such parts");
    int rc = gguf_load(out, bytes, first, "first", budget, msg);
    if (rc)
        return rc;
    (*out)->part = budget_alloc(budget, 1, sizeof(struct gguf *), "parts", msg);
    rc = (*out)->part
             ? gguf_load((*out)->part, bytes + first, size - 8 - first, "second", budget, msg)
             : INST_ENOMEM;
    if (!rc) {
        (*out)->n_parts = 1;
        rc = gguf_join(*out, msg);
    }
    if (rc) {
        gguf_close(*out);
        *out = NULL;
    }
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *gguf;
    struct inst_msg msg = {{0}};
    struct budget budget;
    struct model_config config;
    struct model_weights weights = {0};
    budget_init(&budget, 64 << 20);
    void *copy = malloc(size); // aligned, and exact for the sanitizer
    if (size)
        memcpy(copy, data, size);
    bool pair = size > 8 && !memcmp(data + size - 8, "PART", 4);
    if (pair ? open_pair(&gguf, copy, size, &budget, &msg)
             : gguf_open_memory(&gguf, copy, size, "fuzz", &budget, &msg)) {
        if (!msg.text[0])
            abort();
    } else {
        for (uint64_t i = 0; i < gguf_key_count(gguf); i++)
            touch(gguf_key_at(gguf, i)->data, gguf_key_at(gguf, i)->bytes);
        for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++)
            touch(gguf_tensor_at(gguf, i)->data, gguf_tensor_at(gguf, i)->bytes);
        int rc = model_config_read(gguf, &config, &msg);
        if (!rc)
            rc = model_weights_bind(gguf, &config, &budget, &weights, &msg);
        if (rc && !msg.text[0])
            abort();
        if (!rc)
            touch(weights.layer[config.layers - 1].ffn_norm, config.width * sizeof(float));
        model_weights_free(&weights);
        use_tokenizer(gguf, &budget);
        gguf_close(gguf);
    }
    if (budget.used)
        abort();
    free(copy);
    return 0;
}
