// SPDX-License-Identifier: Apache-2.0
// Any template text and any conversation. Input: one byte of flags; then the text of the template,
// of the system and of up to four users, each up to a 0xff byte. A text that is recognised still is
// so with other line ends and without a comment before it. Whatever the format, it renders to
// exactly its words and what was said; what was said becomes no control token; and what a
// conversation keeps of an answer is a part of it.
#include "host/model/template.h"
#include "tests/host/model_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const special[] = {"<s>",           "</s>",     "<|im_start|>", "<|im_end|>",
                                      "<|eot_id|>",    "[INST]",   "[/INST]",      "<|end|>",
                                      "<end_of_turn>", "<|user|>", "<think>",      "</think>"};
enum { SPECIAL = sizeof special / sizeof *special, FIRST_SPECIAL = 257, TURNS = 4 };

struct vocabulary {
    struct build b;
    struct budget budget;
    struct gguf *gguf;
    struct tokenizer *t;
};

static void open_vocabulary(struct vocabulary *v, bool bos)
{
    static char names[256][8];
    struct build_token token[FIRST_SPECIAL + SPECIAL] = {{"<unk>", 5, 0, 2}};
    for (unsigned b = 0; b < 256; b++) {
        snprintf(names[b], sizeof names[b], "<0x%02X>", b);
        token[1 + b] = (struct build_token){names[b], 6, 0, 6};
    }
    for (size_t i = 0; i < SPECIAL; i++)
        token[FIRST_SPECIAL + i] =
            (struct build_token){special[i], strlen(special[i]), 0, i % 3 == 2 ? 4 : 3};
    build_begin(&v->b);
    build_vocabulary(&v->b, token, FIRST_SPECIAL + SPECIAL);
    build_key_bool(&v->b, "tokenizer.ggml.add_bos_token", bos);
    build_key_u32(&v->b, "tokenizer.ggml.bos_token_id", FIRST_SPECIAL);
    build_key_u32(&v->b, "tokenizer.ggml.eos_token_id", FIRST_SPECIAL + 1);
    budget_init(&v->budget, 64 << 20);
    if (gguf_open_memory(&v->gguf, v->b.data, v->b.bytes, "fuzz", &v->budget, NULL) ||
        tokenizer_open(&v->t, v->gguf, &v->budget, NULL))
        abort();
}

static void close_vocabulary(struct vocabulary *v)
{
    tokenizer_free(v->t);
    gguf_close(v->gguf);
    free(v->b.data);
    if (v->budget.used)
        abort();
}

// The input up to a 0xff byte; a copy of its own size, so that reading beyond it is seen.
static struct gguf_string take(const uint8_t **p, const uint8_t *end)
{
    const uint8_t *stop = *p < end ? memchr(*p, 0xff, (size_t)(end - *p)) : NULL;
    size_t n = (size_t)((stop ? stop : end) - *p);
    char *copy = malloc(n ? n : 1);
    if (n)
        memcpy(copy, *p, n);
    *p += n + (stop != NULL);
    return (struct gguf_string){copy, n};
}

// Control tokens in the ids, and where the spans say that the words are the template's own.
static uint64_t count_special(const uint32_t *ids, uint64_t n)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i++)
        count += ids[i] >= FIRST_SPECIAL && (ids[i] - FIRST_SPECIAL) % 3 != 2;
    return count;
}

static void check_spans(const struct chat_text *text, const struct chat_turn *turn)
{
    uint64_t bytes = 0, foreign = 0;
    uint64_t said = turn->bytes + (turn->first && turn->system ? strlen(turn->system) : 0);
    for (uint64_t i = 0; i < text->n_spans; i++) {
        bytes += text->spans[i].bytes;
        foreign += text->spans[i].foreign ? text->spans[i].bytes : 0;
    }
    if (bytes != text->bytes || foreign > said)
        abort();
}

// The turn with nothing said has as many control tokens as the turn itself.
static void check_turn(const struct chat_template *chat, struct vocabulary *v,
                       const struct chat_turn *turn, struct token_list *list)
{
    struct chat_text text = {.budget = &v->budget};
    struct token_list empty = {.budget = &v->budget};
    struct chat_turn silent = *turn;
    uint64_t before = list->count;
    silent.text = "";
    silent.bytes = 0;
    silent.system = turn->system ? "" : NULL;
    if (chat_template_render(chat, v->t, turn, &text, NULL) ||
        chat_template_encode(chat, v->t, turn, list, NULL) ||
        chat_template_encode(chat, v->t, &silent, &empty, NULL))
        abort();
    check_spans(&text, turn);
    if (count_special(list->ids + before, list->count - before) !=
        count_special(empty.ids, empty.count))
        abort();
    token_list_free(&empty);
    chat_text_free(&text);
}

// An answer of the input's bytes; a fourth of them are special tokens.
static void check_answer(const struct chat_template *chat, struct vocabulary *v,
                         struct token_list *list, struct gguf_string bytes)
{
    uint64_t answer = list->count;
    for (uint64_t i = 0; i < bytes.bytes; i++) {
        uint8_t c = (uint8_t)bytes.data[i];
        if (token_list_add(list, c % 4 ? 1u + c : FIRST_SPECIAL + c / 4 % SPECIAL, NULL))
            abort();
    }
    uint64_t kept = chat_template_settle(chat, v->t, list->ids, list->count, answer);
    if (kept > list->count)
        abort();
    list->count = kept;
}

static void converse(const struct chat_template *chat, struct vocabulary *v, const char *system,
                     const uint8_t *p, const uint8_t *end)
{
    struct token_list list = {.budget = &v->budget};
    for (unsigned i = 0; i < TURNS && (p < end || !i); i++) {
        struct gguf_string said = take(&p, end);
        struct chat_turn turn = {
            .first = !i, .system = system, .text = said.data, .bytes = said.bytes};
        check_turn(chat, v, &turn, &list);
        check_answer(chat, v, &list, said);
        free((char *)(uintptr_t)said.data);
    }
    token_list_free(&list);
}

// What is known is known by what it says, not by how it lies.
static void check_print(const struct chat_template *chat, struct gguf_string text,
                        const struct tm *today)
{
    struct chat_template again;
    char *other = malloc(2 * text.bytes + 8);
    memcpy(other, "{#-#}\n", 6); // the line break behind goes with it
    uint64_t n = 6;
    for (uint64_t i = 0; i < text.bytes; i++) {
        bool bare = text.data[i] == '\n' && (!i || text.data[i - 1] != '\r');
        other[n] = '\r';
        n += bare;
        other[n++] = text.data[i];
    }
    if (chat_template_recognise(&again, (struct gguf_string){other, n}, today, NULL) ||
        again.form != chat->form)
        abort();
    free(other);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"phi4",       "chatml", "llama2", "llama3",
                                        "mistral-v1", "gemma",  "phi3",   "mistral-v7"};
    const struct tm today = {.tm_year = 125, .tm_mon = 2, .tm_mday = 5};
    const uint8_t *p = data + 1, *end = data + size;
    struct chat_template chat;
    struct vocabulary v;
    if (!size)
        return 0;
    struct gguf_string text = take(&p, end), said = take(&p, end);
    char *system = strndup(said.data, said.bytes);
    open_vocabulary(&v, *data & 8);
    if (!chat_template_recognise(&chat, text, &today, NULL))
        check_print(&chat, text, &today);
    else if (chat_template_named(&chat, names[*data & 7], NULL))
        abort();
    converse(&chat, &v, *data & 16 ? system : NULL, p, end);
    close_vocabulary(&v);
    free(system);
    free((char *)(uintptr_t)said.data);
    free((char *)(uintptr_t)text.data);
    return 0;
}
