// SPDX-License-Identifier: Apache-2.0
// What the engine's tests share: a small synthetic model, an engine on the fake or the real drive,
// and logits as bytes to compare.
#ifndef INST_TESTS_HOST_ENGINE_HELPER_H
#define INST_TESTS_HOST_ENGINE_HELPER_H

#include "host/engine/engine.h"
#include "tests/host/fake_drive.h"
#include "tests/host/synth_to.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define TREE_MODEL(name) INST_SOURCE_DIR "/models/" name

struct fixture {
    char path[64];
    inst_engine *engine;
    inst_session *session[8];
    struct link *link; // the fake drive, or NULL
    struct inst_msg msg;
};

// A model of a shape that divides nothing evenly: 3 layers, 6 heads on 2 KV heads of 10.
static inline void write_model(char path[64], uint32_t type)
{
    struct synth_options o;
    struct inst_msg msg = {0};
    synth_defaults(&o);
    o.layers = 3;
    o.width = type == TENSOR_Q8_0 ? 96 : 72;
    o.heads = 6;
    o.kv_heads = 2;
    o.head_dim = type == TENSOR_Q8_0 ? 32 : 10;
    o.ffn = type == TENSOR_Q8_0 ? 128 : 100;
    o.vocab = SYNTH_VOCAB_MIN;
    o.context = 1024;
    o.type = type;
    o.seed = 7;
    snprintf(path, 64, "/tmp/instinfer-test-%d-%u.gguf", (int)getpid(), type);
    if (synth_to(&o, path, &msg))
        fail_msg("%s", msg.text);
}

// kv NULL: the fake drive.
static inline void open_engine(struct fixture *f, const char *model, const char *kv,
                               const struct inst_options *base)
{
    struct inst_options o = base ? *base : (struct inst_options){0};
    o.model = model;
    o.kv = kv ? &kv : (const char *const[]){"null:"};
    o.n_kv = 1;
    if (!o.memory)
        o.memory = 64 << 20;
    if (!o.row_cache) // what is read comes from the place that is tried
        o.row_cache = INST_NO_ROW_CACHE;
    f->link = kv ? NULL : fake_drive_open();
    memset(&f->msg, 0, sizeof f->msg);
    if (engine_open_on(&f->engine, &o, f->link, &f->msg))
        fail_msg("%s", f->msg.text);
    for (uint32_t i = 0; i < f->engine->max_sessions && i < 8; i++)
        assert_int_equal(inst_session_open(&f->session[i], f->engine, &f->msg), 0);
}

static inline void close_engine(struct fixture *f)
{
    inst_engine_close(f->engine);
    link_close(f->link);
    memset(f->session, 0, sizeof f->session);
    f->engine = NULL;
    f->link = NULL;
}

// Token i of a fixed pseudo-random text; `seed` makes different texts.
static inline int32_t text_token(uint32_t seed, size_t i)
{
    uint64_t z = (seed + 1) * 0x9e3779b97f4a7c15u + i * 0xbf58476d1ce4e5b9u;
    z ^= z >> 29;
    return (int32_t)(3 + z * 0x94d049bb133111ebu % 256);
}

static inline int sync_tokens(struct fixture *f, size_t session, const int32_t *tokens, size_t n)
{
    struct inst_prefix prefix = {.session = f->session[session], .tokens = tokens, .n_tokens = n};
    memset(&f->msg, 0, sizeof f->msg);
    int err = inst_sync(f->engine, &prefix, 1, NULL, NULL, &f->msg);
    assert_int_equal(err, prefix.status);
    return err;
}

// What a slow disk is still writing is attended from memory: steps until something was read.
static inline void step_until_read(struct fixture *f, const int32_t *tokens, size_t n,
                                   struct inst_stats *stats)
{
    while (!inst_engine_stats(f->engine, stats, NULL) && !stats->flash_read_bytes) {
        assert_int_equal(sync_tokens(f, 0, tokens, n - 1), 0);
        assert_int_equal(sync_tokens(f, 0, tokens, n), 0);
    }
}

static inline size_t logits_bytes(const struct fixture *f)
{
    return f->engine->config.vocab * sizeof(float);
}

#endif
