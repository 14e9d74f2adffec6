// SPDX-License-Identifier: Apache-2.0
// instinfer inspect: what a GGUF file holds, and whether it runs here with these options.
#include "cmd/commands.h"
#include "base/size.h"
#include "cmd/engine_options.h"
#include "host/engine/engine.h"
#include "host/engine/system.h"
#include "host/model/template.h"
#include "host/model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void print_string(struct gguf_string s)
{
    struct gguf_print print;
    printf("%s", gguf_printable(s, &print));
}

static void print_key(const struct gguf *gguf, const struct gguf_key *key)
{
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)(key->name.bytes < 127 ? key->name.bytes : 127),
             key->name.data);
    struct gguf_string text;
    uint64_t u;
    float f;
    bool b;
    printf("  ");
    print_string(key->name);
    printf(" = ");
    if (key->type == GGUF_ARRAY)
        printf("[%llu values]", (unsigned long long)key->count);
    else if (key->type == GGUF_STRING && !gguf_get_string(gguf, name, GGUF_REQUIRED, &text, NULL))
        print_string(text);
    else if (key->type == GGUF_BOOL && !gguf_get_bool(gguf, name, GGUF_REQUIRED, &b, NULL))
        printf("%s", b ? "true" : "false");
    else if (key->type == GGUF_F32 &&
             !gguf_get_f32(gguf, name, GGUF_REQUIRED, -3.4e38f, 3.4e38f, &f, NULL))
        printf("%g", (double)f);
    else if (!gguf_get_u64(gguf, name, GGUF_REQUIRED, 0, UINT64_MAX, &u, NULL))
        printf("%llu", (unsigned long long)u);
    else
        printf("(type %u)", key->type);
    putchar('\n');
}

static const char *type_name(uint32_t type, char room[24])
{
    const struct tensor_type_info *info = tensor_type_info(type);
    if (info)
        return info->name;
    snprintf(room, 24, "type %u", type);
    return room;
}

static void print_types(const struct gguf *gguf)
{
    enum { TYPES = 64 };
    uint64_t count[TYPES] = {0}, bytes[TYPES] = {0};
    for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(gguf, i);
        if (t->type < TYPES) {
            count[t->type]++;
            bytes[t->type] += t->bytes;
        }
    }
    for (uint32_t i = 0; i < TYPES; i++) {
        char room[24];
        if (count[i])
            printf("  %-6s %6llu tensors, %.1f MiB\n", type_name(i, room),
                   (unsigned long long)count[i], (double)bytes[i] / 1048576);
    }
}

static void print_tensor(const struct gguf_tensor *t)
{
    char room[24];
    printf("  ");
    print_string(t->name);
    printf(" %s [", type_name(t->type, room));
    for (uint32_t i = 0; i < t->n_dims; i++)
        printf(i ? " x %llu" : "%llu", (unsigned long long)t->dims[i]);
    printf("] at %llu\n", (unsigned long long)t->offset);
}

static void print_config(const struct model_config *c)
{
    printf("architecture %s: %u layers, width %u, %u query heads, %u KV heads, head_dim %u, "
           "ffn %u, vocabulary %u\n",
           c->architecture, c->layers, c->width, c->heads, c->kv_heads, c->head_dim, c->ffn,
           c->vocab);
    printf("trained context %u tokens, ", c->context);
    if (c->rope_dims)
        printf("rope base %g over %u of %u dimensions\n", (double)c->rope_base, c->rope_dims,
               c->head_dim);
    else
        puts("learned positions");
    for (uint32_t type = KV_F16; type < KV_TYPES; type++) {
        double token = (double)c->layers * c->kv_heads * (double)kv_token_bytes(type, c->head_dim);
        printf("%sKV as %s %.1f KiB per token, %.1f MiB for the trained context\n",
               type ? "    or " : "", kv_type_name(type), token / 1024,
               token * c->context / 1048576);
    }
}

static void print_chat(const struct gguf *gguf)
{
    struct chat_template chat;
    struct inst_msg why = {0};
    if (!chat_template_read(&chat, gguf, NULL, &why))
        printf("chat template %s\n", chat_template_name(&chat));
    else if (gguf_find(gguf, "tokenizer.chat_template"))
        printf("chat template: none of those known: %s\n", why.text);
    else
        puts("chat template: none in the file");
}

// How the engine would be opened: the machine, the place of KV, the plan, and what is to be said of
// them.
static void print_engine(const inst_engine *e)
{
    char available[24], kv[24], left[24], budget[24];
    printf("here: %u CPUs, %s of memory available\n", system_cpus(),
           size_text(e->available, available));
    size_text(e->plan.kv_bytes, kv);
    printf("KV of a context of %llu tokens takes %s in ", (unsigned long long)e->context, kv);
    for (uint32_t i = 0; i < e->n_places; i++) {
        const struct kv_place *place = &e->place[i];
        printf("%s%s", i ? ", " : "", e->where[i].path);
        if (e->where[i].kind == STORE_DIRECTORY)
            printf(" (%s, %s free)", place->type,
                   place->free_bytes == UINT64_MAX ? "unknown room"
                                                   : size_text(place->free_bytes, left));
    }
    printf("\nmemory %s, chunk %u, group %u, %u threads\n", size_text(e->memory, budget),
           e->plan.chunk, e->plan.group, e->plan.threads);
    for (size_t i = 0; i < e->n_notes; i++)
        printf("warning: %s\n", e->note[i]);
}

static void print_verdict(const struct inst_options *options, const char *why_not)
{
    struct inst_msg msg = {0};
    inst_engine *e = NULL;
    if (!why_not && engine_prepare(&e, options, &msg))
        why_not = msg.text;
    if (e)
        print_engine(e);
    if (why_not)
        printf("runs here: no: %s\n", why_not);
    else
        puts("runs here: yes");
    inst_engine_close(e);
}

static void print_file(const struct gguf *gguf, struct budget *budget,
                       const struct inst_options *options, bool verbose)
{
    struct inst_msg why = {0};
    struct model_config config;
    struct model_weights weights = {0};
    struct tokenizer *tokenizer = NULL;
    printf("%s: GGUF version %u, %.1f MiB, %llu keys, %llu tensors\n", gguf_name(gguf),
           gguf_version(gguf), (double)gguf_bytes(gguf) / 1048576,
           (unsigned long long)gguf_key_count(gguf), (unsigned long long)gguf_tensor_count(gguf));
    print_types(gguf);
    int err = model_config_read(gguf, &config, &why);
    if (!err) {
        print_config(&config);
        err = model_weights_bind(gguf, &config, budget, &weights, &why);
    }
    struct inst_msg no_tokenizer = {0};
    int token_err = tokenizer_open(&tokenizer, gguf, budget, &no_tokenizer);
    if (!token_err)
        printf("tokenizer %s, %u tokens\n", tokenizer_kind(tokenizer), tokenizer_count(tokenizer));
    print_chat(gguf);
    print_verdict(options, err ? why.text : token_err ? no_tokenizer.text : NULL);
    if (verbose) {
        puts("keys:");
        for (uint64_t i = 0; i < gguf_key_count(gguf); i++)
            print_key(gguf, gguf_key_at(gguf, i));
        puts("tensors:");
        for (uint64_t i = 0; i < gguf_tensor_count(gguf); i++)
            print_tensor(gguf_tensor_at(gguf, i));
    }
    tokenizer_free(tokenizer);
    model_weights_free(&weights);
}

static int inspect(const struct inst_options *options, bool verbose)
{
    struct budget budget;
    struct inst_msg msg = {0};
    struct gguf *gguf;
    budget_init(&budget, UINT64_MAX);
    if (gguf_open(&gguf, options->model, &budget, &msg))
        return fail(EXIT_FAILED, "%s", msg.text);
    print_file(gguf, &budget, options, verbose);
    gguf_close(gguf);
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_FAILED, "standard output: %s", strerror(errno));
    return 0;
}

int command_inspect(int argc, char **argv)
{
    static struct engine_options engine;
    static bool verbose;
    const struct option rows[] = {
        {"Options", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--verbose", 'v', OPTION_FLAG, &verbose, 0, 0, NULL, "all keys and tensors"},
        {"To be run with", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        ENGINE_SIZE_ROWS(engine),
        ENGINE_MEMORY_ROWS(engine),
    };
    const struct options options = {"inspect", "MODEL",
                                    "Prints what a GGUF file holds and whether it runs here.", rows,
                                    sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code)) {
        engine.engine.model = n == 1 ? argv[0] : NULL;
        code = n == 1 ? engine_options_read(&engine, "inspect")
                      : fail(EXIT_USAGE, "inspect: give one MODEL");
        if (!code)
            code = inspect(&engine.engine, verbose);
    }
    options_free(&options);
    return code;
}
