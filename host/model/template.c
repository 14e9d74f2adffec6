// SPDX-License-Identifier: Apache-2.0
#include "host/model/template.h"

#include "base/checked.h"
#include "host/model/template_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// Stand for the texts of the begin and end token in the words of a form.
#define BOS "\x01"
#define EOS "\x02"

enum {
    TRIM_USER = 1,     // white space around what the user says
    TRIM_SYSTEM = 2,   // and around the system text
    TRIM_JOINED = 4,   // as TRIM_USER, but not between a system text and the user's
    SYSTEM_INSIDE = 8, // the system text is a part of the first user turn
    SPACE = 16,        // stands before an answer of before; models write it themselves
};

// A conversation reads: system S system_end user U answer A end user U answer A ...; or, with
// SYSTEM_INSIDE: user system S system_end U answer A end user U answer A ...
struct template_form {
    const char *name;
    const char *system, *system_end, *user, *answer, *end;
    unsigned flags;
};

#define DEEPSEEK(word) "<\xef\xbd\x9c" word "\xef\xbd\x9c>"
#define DEEPSEEK_END   DEEPSEEK("end\xe2\x96\x81of\xe2\x96\x81sentence")
#define GRANITE(role)  "<|start_of_role|>" role "<|end_of_role|>"
#define GRANITE_END    "<|end_of_text|>\n"

static const struct template_form forms[] = {
    {"phi4", "<|im_start|>system<|im_sep|>", "<|im_end|>", "<|im_start|>user<|im_sep|>",
     "<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_end|>", 0},
    {"chatml", "<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>user\n",
     "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n", 0},
    {"yi", "", "", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n", 0},
    {"mistral-v7", "[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]", "[INST] ", "[/INST]", EOS, SPACE},
    {"mistral-v7-tekken", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", EOS, 0},
    {"mistral-v1", "", "\n\n", " [INST] ", " [/INST]", EOS, SYSTEM_INSIDE | SPACE},
    {"mistral-v3", "", "\n\n", "[INST] ", "[/INST]", EOS, SYSTEM_INSIDE | SPACE},
    {"mistral-v3-tekken", "", "\n\n", "[INST]", "[/INST]", EOS, SYSTEM_INSIDE},
    {"llama2", "<<SYS>>\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", " " EOS BOS,
     SYSTEM_INSIDE | TRIM_JOINED | SPACE},
    {"mistral-v0.1", "", "\n\n", "[INST] ", " [/INST]", EOS " ", SYSTEM_INSIDE},
    {"mistral-v0.2", "", "\n\n", "[INST] ", " [/INST]", EOS, SYSTEM_INSIDE},
    {"phi4-mini", "<|system|>", "<|end|>", "<|user|>", "<|end|><|assistant|>", "<|end|>", 0},
    {"phi3", "<|system|>\n", "<|end|>\n", "<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n", 0},
    {"zephyr", "<|system|>\n", EOS "\n", "<|user|>\n", EOS "\n<|assistant|>\n", EOS "\n", 0},
    {"falcon3", "<|system|>\n", "\n", "<|user|>\n", "\n<|assistant|>\n", EOS "\n", 0},
    {"gemma", "", "\n\n", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n",
     "<end_of_turn>\n", SYSTEM_INSIDE | TRIM_USER},
    {"llama3", "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
     "<|start_header_id|>user<|end_header_id|>\n\n",
     "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
     TRIM_USER | TRIM_SYSTEM},
    {"deepseek-r1", "", "", DEEPSEEK("User"), DEEPSEEK("Assistant"), DEEPSEEK_END, 0},
    {"granite", GRANITE("system"), GRANITE_END, GRANITE("user"), GRANITE_END GRANITE("assistant"),
     GRANITE_END, 0},
    {"vicuna", "", " ", "USER: ", " ASSISTANT:", EOS, SPACE},
    {"vicuna-lines", "", "\n\n", "USER: ", "\nASSISTANT:", "</s>\n", SPACE},
    {"vicuna-orca", "SYSTEM: ", "\n", "USER: ", "\nASSISTANT:", "</s>\n", SPACE},
    {"raw", "", "", "", "", "", 0},
};
enum { FORMS = sizeof forms / sizeof *forms };

void chat_template_names(char *out, size_t room)
{
    size_t n = 0;
    for (size_t i = 0; i < FORMS && n < room; i++)
        n += (size_t)snprintf(out + n, room - n, i ? ", %s" : "%s", forms[i].name);
}

int chat_template_read(struct chat_template *out, const struct gguf *gguf, const struct tm *today,
                       struct inst_msg *msg)
{
    struct gguf_string text = {0};
    struct inst_msg why = {0};
    *out = (struct chat_template){0};
    int rc = gguf_get_string(gguf, "tokenizer.chat_template", GGUF_OPTIONAL, &text, msg);
    if (rc)
        return rc;
    if (!text.data) {
        char names[512];
        chat_template_names(names, sizeof names);
        return inst_fail(msg, INST_ENOCHAT, "%s: it has no chat template; known are %s",
                         gguf_name(gguf), names);
    }
    rc = chat_template_recognise(out, text, today, &why);
    return rc ? inst_fail(msg, rc, "%s: %s", gguf_name(gguf), why.text) : 0;
}

int chat_template_named(struct chat_template *out, const char *name, struct inst_msg *msg)
{
    *out = (struct chat_template){0};
    for (size_t i = 0; i < FORMS; i++)
        if (!strcmp(forms[i].name, name))
            out->form = &forms[i];
    if (out->form)
        return 0;
    char names[512];
    chat_template_names(names, sizeof names);
    return inst_fail(msg, INST_EINVAL, "chat template '%s' is unknown (%s)", name, names);
}

const char *chat_template_name(const struct chat_template *chat)
{
    return chat->form ? chat->form->name : NULL;
}

void chat_text_free(struct chat_text *text)
{
    if (text->text)
        budget_free(text->budget, text->text);
    if (text->spans)
        budget_free(text->budget, text->spans);
    *text = (struct chat_text){.budget = text->budget};
}

static int grow(struct budget *budget, void **p, uint64_t *capacity, uint64_t used, uint64_t need,
                uint64_t size, struct inst_msg *msg)
{
    if (need <= *capacity)
        return 0;
    uint64_t room = max_u64(max_u64(need, *capacity * 2), 64);
    void *bigger = budget_alloc(budget, room, size, "a chat's turn", msg);
    if (!bigger)
        return INST_ENOMEM;
    if (used)
        memcpy(bigger, *p, used * size);
    if (*p)
        budget_free(budget, *p);
    *p = bigger;
    *capacity = room;
    return 0;
}

static int put(struct chat_text *out, const char *text, uint64_t bytes, bool foreign,
               struct inst_msg *msg)
{
    uint64_t need;
    if (!bytes)
        return 0;
    if (!checked_add(out->bytes, bytes, &need))
        return inst_fail(msg, INST_EINVAL, "a turn longer than memory");
    int rc = grow(out->budget, (void **)&out->text, &out->capacity, out->bytes, need, 1, msg);
    if (!rc)
        rc = grow(out->budget, (void **)&out->spans, &out->span_capacity, out->n_spans,
                  out->n_spans + 1, sizeof *out->spans, msg);
    if (rc)
        return rc;
    memcpy(out->text + out->bytes, text, bytes);
    out->bytes = need;
    if (!out->n_spans || out->spans[out->n_spans - 1].foreign != foreign)
        out->spans[out->n_spans++] = (struct token_span){0, foreign};
    out->spans[out->n_spans - 1].bytes += bytes;
    return 0;
}

// Words of a form, with the texts of the begin and end tokens in their places.
static int put_words(struct chat_text *out, const char *words, const struct tokenizer *t,
                     struct inst_msg *msg)
{
    int rc = 0;
    while (!rc && *words) {
        size_t n = strcspn(words, BOS EOS);
        rc = put(out, words, n, false, msg);
        words += n;
        if (rc || !*words)
            break;
        struct gguf_string s =
            tokenizer_text(t, *words == *BOS ? tokenizer_bos(t) : tokenizer_eos(t));
        rc = put(out, s.data, s.bytes, false, msg);
        words++;
    }
    return rc;
}

// Part of a string literal of the template.
static int put_literal(struct chat_text *out, struct gguf_string s, struct inst_msg *msg)
{
    int rc = 0;
    for (uint64_t i = 0; i < s.bytes && !rc; i++) {
        char c = s.data[i];
        if (c == '\\' && i + 1 < s.bytes) {
            static const char from[] = "nrt\\'\"", to[] = "\n\r\t\\'\"";
            const char *at = memchr(from, s.data[i + 1], sizeof from - 1);
            if (at) {
                c = to[at - from];
                i++;
            }
        }
        rc = put(out, &c, 1, false, msg);
    }
    return rc;
}

// The system text with its words, if there is to be one.
static int put_system(const struct chat_template *chat, const struct tokenizer *t,
                      const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg)
{
    const struct template_form *form = chat->form;
    struct gguf_string own = {turn->system, turn->system ? strlen(turn->system) : 0};
    if (!own.data && !chat->system[0].bytes && !chat->preamble[0])
        return 0;
    if (form->flags & TRIM_SYSTEM)
        own = template_text_trim(own, true, true);
    int rc = put_words(out, form->system, t, msg);
    if (!rc)
        rc = put_words(out, chat->preamble, t, msg);
    if (!rc && own.data)
        rc = put(out, own.data, own.bytes, true, msg);
    for (int i = 0; i < 2 && !rc && !own.data; i++) {
        rc = put_literal(out, chat->system[i], msg);
        if (!rc && !i)
            rc = put_words(out, chat->date, t, msg);
    }
    return rc ? rc : put_words(out, form->system_end, t, msg);
}

// What a template keeps of an answer, as chat_template_settle has it for tokens.
static int put_answer(const struct chat_template *chat, const struct chat_turn *turn,
                      struct chat_text *out, struct inst_msg *msg)
{
    static const char close[] = "</think>";
    struct gguf_string kept = {turn->answer, turn->answer_bytes};
    const char *end = NULL;
    if (chat->drops_thinking)
        for (const char *at = kept.data;
             (at = memmem(at, kept.bytes - (size_t)(at - kept.data), close, sizeof close - 1));)
            end = at += sizeof close - 1;
    if (end) {
        kept = (struct gguf_string){end, kept.bytes - (size_t)(end - kept.data)};
        if (!chat->keeps_space)
            kept = template_text_trim(kept, true, false);
    }
    if (chat->form->flags & (TRIM_USER | TRIM_JOINED))
        kept = template_text_trim(kept, true, true);
    int rc = chat->form->flags & SPACE ? put(out, " ", 1, false, msg) : 0;
    return rc ? rc : put(out, kept.data, kept.bytes, true, msg);
}

static int put_turn(const struct chat_template *chat, const struct tokenizer *t,
                    const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg)
{
    const struct template_form *form = chat->form;
    bool inside = form->flags & SYSTEM_INSIDE, system = turn->first && turn->system;
    int rc = 0;
    if (!turn->first)
        rc = put_words(out, form->end, t, msg);
    if (!rc && turn->first && !inside)
        rc = put_system(chat, t, turn, out, msg);
    if (!rc)
        rc = put_words(out, form->user, t, msg);
    if (!rc && turn->first && inside)
        rc = put_system(chat, t, turn, out, msg);
    bool trims = form->flags & (TRIM_USER | TRIM_JOINED);
    struct gguf_string said =
        template_text_trim((struct gguf_string){turn->text, turn->bytes},
                           trims && !(form->flags & TRIM_JOINED && system), trims);
    if (!rc)
        rc = put(out, said.data, said.bytes, true, msg);
    if (!rc)
        rc = put_words(out, form->answer, t, msg);
    if (!rc && turn->answer)
        rc = put_answer(chat, turn, out, msg);
    return rc || turn->answer || !chat->opens_thinking ? rc : put_words(out, "<think>\n", t, msg);
}

int chat_template_render_all(const struct chat_template *chat, const struct tokenizer *t,
                             const struct chat_turn *turns, uint64_t n, struct chat_text *out,
                             struct inst_msg *msg)
{
    int rc = 0;
    out->bytes = out->n_spans = 0;
    for (uint64_t i = 0; i < n && !rc; i++)
        rc = put_turn(chat, t, &turns[i], out, msg);
    return rc;
}

int chat_template_render(const struct chat_template *chat, const struct tokenizer *t,
                         const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg)
{
    return chat_template_render_all(chat, t, turn, 1, out, msg);
}

int chat_template_encode_all(const struct chat_template *chat, const struct tokenizer *t,
                             const struct chat_turn *turns, uint64_t n, struct token_list *list,
                             struct inst_msg *msg)
{
    struct chat_text text = {.budget = list->budget};
    uint64_t before = list->count;
    bool first = turns->first;
    bool bos = first && (chat->bos || tokenizer_adds_bos(t)) && tokenizer_bos(t) != TOKENIZER_NONE;
    int rc = chat_template_render_all(chat, t, turns, n, &text, msg);
    if (!rc && bos)
        rc = token_list_add(list, tokenizer_bos(t), msg);
    if (!rc)
        rc = tokenizer_encode_spans(t, text.text, text.spans, text.n_spans,
                                    TOKENIZER_PARSE_SPECIAL | (first ? 0u : TOKENIZER_CONTINUES),
                                    list, msg);
    if (rc)
        list->count = before;
    chat_text_free(&text);
    return rc;
}

int chat_template_encode(const struct chat_template *chat, const struct tokenizer *t,
                         const struct chat_turn *turn, struct token_list *list,
                         struct inst_msg *msg)
{
    return chat_template_encode_all(chat, t, turn, 1, list, msg);
}

// True for tokens of nothing but white space.
static bool is_blank(const struct tokenizer *t, uint32_t id)
{
    char piece[16];
    if (tokenizer_text(t, id).bytes > sizeof piece)
        return false;
    uint32_t n = tokenizer_piece(t, id, 0, piece);
    return n && !template_text_trim((struct gguf_string){piece, n}, true, false).bytes;
}

uint64_t chat_template_settle(const struct chat_template *chat, const struct tokenizer *t,
                              uint32_t *ids, uint64_t count, uint64_t answer)
{
    uint32_t open = tokenizer_find(t, "<think>", 7), close = tokenizer_find(t, "</think>", 8);
    uint64_t start = answer, end = count;
    if (!chat->drops_thinking || close == TOKENIZER_NONE)
        return count;
    while (end > answer && ids[end - 1] != close)
        end--;
    if (end == answer)
        return count;
    while (end < count && !chat->keeps_space && is_blank(t, ids[end]))
        end++;
    while (start && is_blank(t, ids[start - 1]))
        start--;
    // Only a start of thinking that the template itself wrote goes too.
    bool written = start && chat->opens_thinking && ids[start - 1] == open;
    start = written ? start - 1 : answer;
    memmove(ids + start, ids + end, (count - end) * sizeof *ids);
    return start + (count - end);
}
