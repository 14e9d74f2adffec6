// SPDX-License-Identifier: Apache-2.0
#include "host/model/template.h"

#include "base/checked.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// Stand for the texts of the begin and end token in the words of a form.
#define BOS "\x01"
#define EOS "\x02"

enum {
    TRIM_USER = 1,       // white space around what the user says
    TRIM_SYSTEM = 2,     // and around the system text
    TRIM_JOINED = 4,     // as TRIM_USER, but not between a system text and the user's
    SYSTEM_INSIDE = 8,   // the system text is a part of the first user turn
    SYSTEM_DEFAULT = 16, // the template may hold a system text of its own
    SYSTEM_DATED = 32,   // the template may put dates before every system text
};

enum { MARKS = 4, SYSTEM_BYTES_MAX = 4096 };

// A conversation reads: system S system_end user U answer A end user U answer A ...; or, with
// SYSTEM_INSIDE: user system S system_end U answer A end user U answer A ...
struct template_form {
    const char *name;
    const char *has[MARKS], *lacks[MARKS]; // fragments of a template's text
    const char *system, *system_end, *user, *answer, *end;
    unsigned flags;
};

// The first whose marks fit counts. A form without marks is only found by name.
static const struct template_form forms[] = {
    {"phi4",
     {"<|im_start|>", "<|im_sep|>"},
     {NULL},
     "<|im_start|>system<|im_sep|>",
     "<|im_end|>",
     "<|im_start|>user<|im_sep|>",
     "<|im_end|><|im_start|>assistant<|im_sep|>",
     "<|im_end|>",
     0},
    {"chatml",
     {"<|im_start|>", "<|im_end|>"},
     {NULL},
     "<|im_start|>system\n",
     "<|im_end|>\n",
     "<|im_start|>user\n",
     "<|im_end|>\n<|im_start|>assistant\n",
     "<|im_end|>\n",
     SYSTEM_DEFAULT},
    {"mistral-v7",
     {"[INST] ", "[SYSTEM_PROMPT] "},
     {NULL},
     "[SYSTEM_PROMPT] ",
     "[/SYSTEM_PROMPT]",
     "[INST] ",
     "[/INST]",
     EOS,
     0},
    {"mistral-v7-tekken",
     {"[INST]", "[SYSTEM_PROMPT]"},
     {"[INST] "},
     "[SYSTEM_PROMPT]",
     "[/SYSTEM_PROMPT]",
     "[INST]",
     "[/INST]",
     EOS,
     0},
    {"mistral-v1",
     {" [INST] ", " [/INST]"},
     {"<<SYS>>"},
     "",
     "\n\n",
     " [INST] ",
     " [/INST]",
     EOS,
     SYSTEM_INSIDE},
    {"mistral-v3",
     {"[INST] ", "[AVAILABLE_TOOLS]"},
     {NULL},
     "",
     "\n\n",
     "[INST] ",
     "[/INST]",
     EOS,
     SYSTEM_INSIDE},
    {"mistral-v3-tekken",
     {"[INST]", "[AVAILABLE_TOOLS]"},
     {NULL},
     "",
     "\n\n",
     "[INST]",
     "[/INST]",
     EOS,
     SYSTEM_INSIDE},
    {"llama2",
     {"[INST] ", "<<SYS>>"},
     {NULL},
     "<<SYS>>\n",
     "\n<</SYS>>\n\n",
     "[INST] ",
     " [/INST]",
     " " EOS BOS,
     SYSTEM_INSIDE | TRIM_JOINED},
    {"mistral-v0.1",
     {"[INST] ", " [/INST]", "eos_token + ' '"},
     {NULL},
     "",
     "\n\n",
     "[INST] ",
     " [/INST]",
     EOS " ",
     SYSTEM_INSIDE},
    {"mistral-v0.2",
     {"[INST] ", " [/INST]"},
     {NULL},
     "",
     "\n\n",
     "[INST] ",
     " [/INST]",
     EOS,
     SYSTEM_INSIDE},
    {"phi4-mini",
     {"<|assistant|>", "<|end|>", "'|>' + message['content']"},
     {NULL},
     "<|system|>",
     "<|end|>",
     "<|user|>",
     "<|end|><|assistant|>",
     "<|end|>",
     0},
    {"phi3",
     {"<|assistant|>", "<|end|>"},
     {"<|content|>"},
     "<|system|>\n",
     "<|end|>\n",
     "<|user|>\n",
     "<|end|>\n<|assistant|>\n",
     "<|end|>\n",
     0},
    {"zephyr",
     {"<|user|>", "<|assistant|>", "message['content'] + eos_token"},
     {"[gMASK]", "eos_token + '"},
     "<|system|>\n",
     EOS "\n",
     "<|user|>\n",
     EOS "\n<|assistant|>\n",
     EOS "\n",
     0},
    {"gemma",
     {"<start_of_turn>", "<end_of_turn>"},
     {NULL},
     "",
     "\n\n",
     "<start_of_turn>user\n",
     "<end_of_turn>\n<start_of_turn>model\n",
     "<end_of_turn>\n",
     SYSTEM_INSIDE | TRIM_USER},
    {"llama3",
     {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     {NULL},
     "<|start_header_id|>system<|end_header_id|>\n\n",
     "<|eot_id|>",
     "<|start_header_id|>user<|end_header_id|>\n\n",
     "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     "<|eot_id|>",
     TRIM_USER | TRIM_SYSTEM | SYSTEM_DATED},
    {"raw", {NULL}, {NULL}, "", "", "", "", "", 0},
};
enum { FORMS = sizeof forms / sizeof *forms };

static const char *find(struct gguf_string text, const char *mark)
{
    return memmem(text.data, text.bytes, mark, strlen(mark));
}

static bool form_fits(const struct template_form *form, struct gguf_string text)
{
    bool fits = form->has[0];
    for (size_t i = 0; i < MARKS; i++) {
        fits = fits && (!form->has[i] || find(text, form->has[i]));
        fits = fits && (!form->lacks[i] || !find(text, form->lacks[i]));
    }
    return fits;
}

static struct gguf_string rest_of(struct gguf_string text, const char *from)
{
    return (struct gguf_string){from, text.bytes - (uint64_t)(from - text.data)};
}

static bool skip(struct gguf_string *text, const char *word)
{
    size_t n = strlen(word);
    if (text->bytes < n || memcmp(text->data, word, n))
        return false;
    *text = rest_of(*text, text->data + n);
    return true;
}

// Skips `words`, in which a line break may be written as in a string literal.
static bool skip_words(struct gguf_string *text, const char *words)
{
    for (; *words; words++) {
        char word[] = {*words, 0};
        if (!skip(text, word) && !(*words == '\n' && skip(text, "\\n")))
            return false;
    }
    return true;
}

// A system text that stands in the template word for word, between the form's own words.
static struct gguf_string default_system(const struct template_form *form, struct gguf_string text)
{
    char end[32];
    snprintf(end, sizeof end, "%.*s", (int)strcspn(form->system_end, "\n"), form->system_end);
    for (const char *at; (at = memchr(text.data, form->system[0], text.bytes));) {
        struct gguf_string system = rest_of(text, at);
        text = rest_of(text, at + 1);
        const char *stop;
        if (!skip_words(&system, form->system))
            continue;
        system.bytes = min_u64(system.bytes, SYSTEM_BYTES_MAX);
        if (!(stop = find(system, end)))
            continue;
        system.bytes = (uint64_t)(stop - system.data);
        if (system.bytes && !find(system, "'") && !find(system, "\"") && !find(system, "{"))
            return system;
    }
    return (struct gguf_string){0};
}

// Templates of models that always think start the answer with it.
static struct gguf_string thinking_answer(const struct template_form *form, struct gguf_string text)
{
    const char *own = strrchr(form->answer, '<');
    for (const char *at; own && (at = memchr(text.data, '<', text.bytes));) {
        struct gguf_string rest = rest_of(text, at);
        text = rest_of(text, at + 1);
        if (!skip_words(&rest, own))
            continue;
        struct gguf_string answer = rest;
        if (skip_words(&rest, "<think>\n") && (skip(&rest, "'") || skip(&rest, "\""))) {
            answer.bytes = (uint64_t)(rest.data - 1 - answer.data);
            return answer;
        }
    }
    return (struct gguf_string){0};
}

// "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", as Llama 3.1 and later have
// it; the second is today's where the template asks for the time.
static void dated_preamble(struct chat_template *chat, struct gguf_string text,
                           const struct tm *today)
{
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    char date[16] = "26 Jul 2024";
    if (!find(text, "Cutting Knowledge Date: December 2023"))
        return;
    if (find(text, "strftime_now") && today)
        snprintf(date, sizeof date, "%02d %s %d", today->tm_mday % 100,
                 months[(unsigned)today->tm_mon % 12], (today->tm_year + 1900) % 10000);
    snprintf(chat->preamble, sizeof chat->preamble,
             "Cutting Knowledge Date: December 2023\nToday Date: %s\n\n", date);
}

// "chatml, llama2, ...": the names a caller may give.
static void list_names(char *out, size_t room)
{
    size_t n = 0;
    for (size_t i = 0; i < FORMS && n < room; i++)
        n += (size_t)snprintf(out + n, room - n, i ? ", %s" : "%s", forms[i].name);
}

int chat_template_recognise(struct chat_template *out, struct gguf_string text,
                            const struct tm *today, struct inst_msg *msg)
{
    *out = (struct chat_template){0};
    for (size_t i = 0; i < FORMS && !out->form; i++)
        if (form_fits(&forms[i], text))
            out->form = &forms[i];
    if (!out->form) {
        char names[256];
        list_names(names, sizeof names);
        return inst_fail(msg, INST_ENOCHAT, "its chat template is none of the known ones (%s)",
                         names);
    }
    out->bos = find(text, "bos_token");
    if (out->form->flags & SYSTEM_DEFAULT) {
        out->system = default_system(out->form, text);
        out->answer = thinking_answer(out->form, text);
        out->drops_thinking = find(text, "</think>");
    }
    if (out->form->flags & SYSTEM_DATED)
        dated_preamble(out, text, today);
    return 0;
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
        char names[256];
        list_names(names, sizeof names);
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
    char names[256];
    list_names(names, sizeof names);
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

// Bytes of the white space character that the text starts with, 0 when it starts with another.
// White space is what Python's str.strip takes for it.
static uint64_t space_at(const char *text, uint64_t bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    if (bytes && ((s[0] >= 0x09 && s[0] <= 0x0d) || (s[0] >= 0x1c && s[0] <= 0x20)))
        return 1;
    if (bytes >= 2 && s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0))
        return 2;
    if (bytes < 3 || s[0] < 0xe1 || s[0] > 0xe3)
        return 0;
    unsigned point = (s[0] & 15u) << 12 | (s[1] & 63u) << 6 | (s[2] & 63u);
    bool whole = (s[1] & 0xc0) == 0x80 && (s[2] & 0xc0) == 0x80;
    bool space = point == 0x1680 || (point >= 0x2000 && point <= 0x200a) || point == 0x2028 ||
                 point == 0x2029 || point == 0x202f || point == 0x205f || point == 0x3000;
    return whole && space ? 3 : 0;
}

static struct gguf_string trim(struct gguf_string s, bool start, bool end)
{
    uint64_t n;
    while (start && (n = space_at(s.data, s.bytes)))
        s = (struct gguf_string){s.data + n, s.bytes - n};
    while (end && s.bytes) {
        for (n = 1; n <= 3 && n <= s.bytes; n++)
            if (space_at(s.data + s.bytes - n, n) == n)
                break;
        if (n > 3 || n > s.bytes)
            break;
        s.bytes -= n;
    }
    return s;
}

// The system text with its words, if there is to be one.
static int put_system(const struct chat_template *chat, const struct tokenizer *t,
                      const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg)
{
    const struct template_form *form = chat->form;
    struct gguf_string own = {turn->system, turn->system ? strlen(turn->system) : 0};
    if (!own.data && !chat->system.bytes && !chat->preamble[0])
        return 0;
    if (form->flags & TRIM_SYSTEM)
        own = trim(own, true, true);
    int rc = put_words(out, form->system, t, msg);
    if (!rc)
        rc = put_words(out, chat->preamble, t, msg);
    if (!rc)
        rc = own.data ? put(out, own.data, own.bytes, true, msg)
                      : put_literal(out, chat->system, msg);
    return rc ? rc : put_words(out, form->system_end, t, msg);
}

int chat_template_render(const struct chat_template *chat, const struct tokenizer *t,
                         const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg)
{
    const struct template_form *form = chat->form;
    bool inside = form->flags & SYSTEM_INSIDE, system = turn->first && turn->system;
    int rc = 0;
    out->bytes = out->n_spans = 0;
    if (!turn->first)
        rc = put_words(out, form->end, t, msg);
    if (!rc && turn->first && !inside)
        rc = put_system(chat, t, turn, out, msg);
    if (!rc)
        rc = put_words(out, form->user, t, msg);
    if (!rc && turn->first && inside)
        rc = put_system(chat, t, turn, out, msg);
    bool trims = form->flags & (TRIM_USER | TRIM_JOINED);
    struct gguf_string said = trim((struct gguf_string){turn->text, turn->bytes},
                                   trims && !(form->flags & TRIM_JOINED && system), trims);
    if (!rc)
        rc = put(out, said.data, said.bytes, true, msg);
    if (!rc)
        rc = put_words(out, form->answer, t, msg);
    return rc ? rc : put_literal(out, chat->answer, msg);
}

int chat_template_encode(const struct chat_template *chat, const struct tokenizer *t,
                         const struct chat_turn *turn, struct token_list *list,
                         struct inst_msg *msg)
{
    struct chat_text text = {.budget = list->budget};
    uint64_t before = list->count;
    bool bos =
        turn->first && (chat->bos || tokenizer_adds_bos(t)) && tokenizer_bos(t) != TOKENIZER_NONE;
    int rc = chat_template_render(chat, t, turn, &text, msg);
    if (!rc && bos)
        rc = token_list_add(list, tokenizer_bos(t), msg);
    if (!rc)
        rc = tokenizer_encode_spans(
            t, text.text, text.spans, text.n_spans,
            TOKENIZER_PARSE_SPECIAL | (turn->first ? 0u : TOKENIZER_CONTINUES), list, msg);
    if (rc)
        list->count = before;
    chat_text_free(&text);
    return rc;
}

// True for tokens of nothing but white space.
static bool is_blank(const struct tokenizer *t, uint32_t id)
{
    char piece[16];
    if (tokenizer_text(t, id).bytes > sizeof piece)
        return false;
    uint32_t n = tokenizer_piece(t, id, 0, piece);
    return n && !trim((struct gguf_string){piece, n}, true, false).bytes;
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
    while (end < count && is_blank(t, ids[end]))
        end++;
    while (start && is_blank(t, ids[start - 1]))
        start--;
    // Only a start of thinking that the template itself wrote goes too.
    bool written = start && chat->answer.bytes && ids[start - 1] == open;
    start = written ? start - 1 : answer;
    memmove(ids + start, ids + end, (count - end) * sizeof *ids);
    return start + (count - end);
}
