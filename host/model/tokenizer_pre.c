// SPDX-License-Identifier: Apache-2.0
// A pre-tokenizer is a list of patterns. The first cuts the text into its matches and what lies
// between them, the next cuts each of those pieces, and so on; nothing looks across a cut. The
// patterns run in PCRE2 and are written so that every repeat is of a single character class: no
// text, however long, makes the matcher recurse or try a place more than a few times.
//
// The rules are those of the tokenizers that the models were trained with, as llama.cpp applies
// them, since ids are to equal its ids. Two things are not left to PCRE2: broken UTF-8, which it
// refuses, and the classes of characters newer than its Unicode tables, which would make ids depend
// on the library's version. Where a text has such, the patterns see a copy with stand-ins of the
// same length and class.
#include "host/model/tokenizer_pre.h"

#include "base/checked.h"
#include "host/model/text.h"
#include "host/model/tokenizer_internal.h"

#include <inttypes.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { STAGES_MAX = 6, NAMES_MAX = 9 };

// Pieces that several pre-tokenizers share. Case-insensitive matching is spelled out: Unicode would
// fold the long s onto 's'.
#define CONTRACTION       "'s|'t|'re|'ve|'m|'ll|'d"
#define CONTRACTION_CASE  "'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL]"
#define LETTERS_PREFIXED  "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define OTHERS_AND_BREAKS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define SPACES            "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2              CONTRACTION "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
// Letters without the other case of ASCII; letters beyond ASCII count as both cases.
#define UPPER "[^\\P{L}a-z]"
#define LOWER "[^\\P{L}A-Z]"
// The letters that the deepseek-llm tokenizer lists.
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

struct pre_rule {
    const char *names[NAMES_MAX + 1];
    bool ignore_merges, add_bos;
    const char *patterns[STAGES_MAX + 1];
};

static const struct pre_rule rules[] = {
    {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "mellum", "a.x-4.0"},
     false,
     false,
     {GPT2}},
    {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
     true,
     true,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|\\p{N}{1,3}|" OTHERS_AND_BREAKS "|" SPACES}},
    {{"dbrx", "smaug-bpe"},
     false,
     false,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|\\p{N}{1,3}|" OTHERS_AND_BREAKS "|" SPACES}},
    {{"qwen2", "deepseek-r1-qwen", "kormo", "stablelm2"},
     false,
     false,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|\\p{N}|" OTHERS_AND_BREAKS "|" SPACES}},
    {{"smollm", "starcoder", "refact", "command-r", "codeshell"}, false, false, {"\\p{N}", GPT2}},
    {{"tekken"},
     true,
     true,
     {"[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER
      "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES}},
    {{"deepseek-llm"},
     false,
     false,
     {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+",
      "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3001}\\x{3002}]+",
      "(?<!\\s)\\s++\\z",
      // U+0800 to U+9FA5 and U+AC00 to U+D7FF but for white space.
      "[^\\x{0}-\\x{7ff}\\x{9fa6}-\\x{abff}\\x{e000}-\\x{10ffff}\\s]+", "\\p{N}+"}},
    {{"default", ""}, false, false, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

struct pre {
    const struct pre_rule *rule;
    struct budget *budget;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *stage[STAGES_MAX];
    uint32_t stages;
};

struct pre_splitter {
    const struct pre *pre;
    struct budget *budget;
    pcre2_general_context *memory;
    pcre2_match_data *match;
    // Where the text cannot be used as it is: the repaired text, and what the patterns see.
    char *text, *subject;
    uint64_t text_capacity, subject_capacity;
};

static void *pcre_alloc(PCRE2_SIZE bytes, void *budget)
{
    return budget_alloc(budget, max_u64(bytes, 1), 1, "a pre-tokenizer", NULL);
}

static void pcre_release(void *p, void *budget)
{
    budget_free(budget, p);
}

static int no_memory(struct inst_msg *msg)
{
    return inst_fail(msg, INST_ENOMEM, "no memory for a pre-tokenizer inside the budget");
}

static const struct pre_rule *find_rule(struct gguf_string name)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        for (size_t j = 0; rules[i].names[j]; j++)
            if (gguf_string_is(name, rules[i].names[j]))
                return &rules[i];
    return NULL;
}

static int compile(struct pre *pre, struct inst_msg *msg)
{
    pre->memory = pcre2_general_context_create(pcre_alloc, pcre_release, pre->budget);
    pcre2_compile_context *context = pre->memory ? pcre2_compile_context_create(pre->memory) : NULL;
    pre->limits = pre->memory ? pcre2_match_context_create(pre->memory) : NULL;
    int rc = context && pre->limits ? 0 : no_memory(msg);
    if (!rc) // a run of a gigabyte is walked back once; the patterns themselves bound the work
        pcre2_set_match_limit(pre->limits, UINT32_MAX);
    for (uint32_t i = 0; !rc && pre->rule->patterns[i]; i++) {
        int error;
        PCRE2_SIZE at;
        const char *pattern = pre->rule->patterns[i];
        pre->stage[i] =
            pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &at, context);
        if (!pre->stage[i] && error == PCRE2_ERROR_HEAP_FAILED)
            rc = no_memory(msg);
        else if (!pre->stage[i])
            rc = inst_fail(msg, INST_ENOTSUP,
                           "PCRE2 does not take the patterns of pre-tokenizer '%s' (error %d)",
                           pre->rule->names[0], error);
        else
            pcre2_jit_compile(pre->stage[i], PCRE2_JIT_COMPLETE); // refused: interpreted
        pre->stages = i + 1;
    }
    pcre2_compile_context_free(context);
    return rc;
}

int pre_open(struct pre **out, const struct gguf *gguf, struct budget *budget, struct inst_msg *msg)
{
    static const char key[] = "tokenizer.ggml.pre";
    struct gguf_string name = {"", 0};
    struct gguf_print print;
    *out = NULL;
    int rc = gguf_get_string(gguf, key, GGUF_OPTIONAL, &name, msg);
    if (rc)
        return rc;
    const struct pre_rule *rule = find_rule(name);
    if (!rule)
        return gguf_fail_key(gguf, gguf_find(gguf, key), INST_ENOTSUP, msg,
                             "pre-tokenizer '%s' is not supported", gguf_printable(name, &print));
    struct pre *pre = budget_alloc(budget, 1, sizeof *pre, "a pre-tokenizer", msg);
    if (!pre)
        return INST_ENOMEM;
    pre->rule = rule;
    pre->budget = budget;
    rc = compile(pre, msg);
    if (rc)
        pre_close(pre);
    else
        *out = pre;
    return rc;
}

void pre_close(struct pre *pre)
{
    if (!pre)
        return;
    for (uint32_t i = 0; i < pre->stages; i++)
        pcre2_code_free(pre->stage[i]);
    pcre2_match_context_free(pre->limits);
    pcre2_general_context_free(pre->memory);
    budget_free(pre->budget, pre);
}

bool pre_adds_bos(const struct pre *pre)
{
    return pre->rule->add_bos;
}

bool pre_ignores_merges(const struct pre *pre)
{
    return pre->rule->ignore_merges;
}

int pre_splitter_new(struct pre_splitter **out, const struct pre *pre, struct budget *budget,
                     struct inst_msg *msg)
{
    struct pre_splitter *s = budget_alloc(budget, 1, sizeof *s, "a pre-tokenizer", msg);
    *out = NULL;
    if (!s)
        return INST_ENOMEM;
    s->pre = pre;
    s->budget = budget;
    s->memory = pcre2_general_context_create(pcre_alloc, pcre_release, budget);
    s->match = s->memory ? pcre2_match_data_create(1, s->memory) : NULL;
    if (!s->match) {
        pre_splitter_free(s);
        return no_memory(msg);
    }
    *out = s;
    return 0;
}

void pre_splitter_free(struct pre_splitter *s)
{
    if (!s)
        return;
    pcre2_match_data_free(s->match);
    pcre2_general_context_free(s->memory);
    budget_free(s->budget, s->text);
    budget_free(s->budget, s->subject);
    budget_free(s->budget, s);
}

// Characters whose class the patterns shall not ask PCRE2 for, and who answers in their place: one
// with as many bytes, of the class that Unicode 15.1 gives. Sorted.
static const struct {
    uint32_t first, last, stand_in;
} stand_ins[] = {
    {0x180e, 0x180e, 0x2060}, // PCRE2 counts this one as white space, Unicode no longer does
    {0xd800, 0xdfff, 0xe000}, // halves of surrogate pairs, which are no UTF-8
    {0x1123f, 0x11240, 0x20000}, {0x11b00, 0x11b09, 0x10100}, {0x11f02, 0x11f02, 0x20000},
    {0x11f04, 0x11f10, 0x20000}, {0x11f12, 0x11f33, 0x20000}, {0x11f43, 0x11f4f, 0x10100},
    {0x11f50, 0x11f59, 0x1d7ce}, {0x1342f, 0x1342f, 0x20000}, {0x13441, 0x13446, 0x20000},
    {0x1b132, 0x1b132, 0x20000}, {0x1b155, 0x1b155, 0x20000}, {0x1d2c0, 0x1d2d3, 0x1d7ce},
    {0x1df25, 0x1df2a, 0x20000}, {0x1e030, 0x1e06d, 0x20000}, {0x1e4d0, 0x1e4eb, 0x20000},
    {0x1e4f0, 0x1e4f9, 0x1d7ce}, {0x2b739, 0x2b739, 0x20000}, {0x2ebf0, 0x2ee5d, 0x20000},
    {0x31350, 0x323af, 0x20000},
};

static uint32_t stand_in_for(uint32_t point)
{
    if (point < stand_ins[0].first)
        return point;
    for (size_t i = 0; i < sizeof stand_ins / sizeof *stand_ins; i++)
        if (point <= stand_ins[i].last)
            return point >= stand_ins[i].first ? stand_ins[i].stand_in : point;
    return point;
}

// Decodes one character as llama.cpp does: a first byte and as many continuation bytes as it asks
// for, overlong forms and surrogates included. Anything else is one byte of U+FFFD.
static uint32_t next_point(const unsigned char **p, const unsigned char *end)
{
    const unsigned char *s = *p;
    uint32_t more = *s < 0x80 ? 0 : *s < 0xe0 ? 1 : *s < 0xf0 ? 2 : 3;
    uint32_t point = more ? *s & (0x3fu >> more) : *s;
    *p = s + 1;
    if ((*s >= 0x80 && *s < 0xc0) || *s >= 0xf8 || (uint64_t)(end - s) <= more)
        return 0xfffd;
    for (uint32_t i = 1; i <= more; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0xfffd;
        point = point << 6 | (s[i] & 0x3f);
    }
    if (point > 0x10ffff)
        return 0xfffd;
    *p = s + 1 + more;
    return point;
}

static uint32_t put_point(char *out, uint32_t point)
{
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    uint32_t bytes = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (uint32_t i = bytes - 1; i > 0; i--, point >>= 6)
        out[i] = (char)(0x80 | (point & 0x3f));
    out[0] = (char)(0xf0u << (4 - bytes) | point);
    return bytes;
}

// True when PCRE2 may see the text as it is.
static bool is_plain(const char *text, uint64_t bytes)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + bytes;
    while (p < end) {
        if (*p < 0x80) {
            p++;
            continue;
        }
        if (text_utf8_length(p, (size_t)(end - p)) < 1)
            return false;
        uint32_t point = next_point(&p, end);
        if (stand_in_for(point) != point)
            return false;
    }
    return true;
}

// Makes the two copies. A byte that is no UTF-8 becomes three.
static int repair(struct pre_splitter *s, const char *text, uint64_t bytes, uint64_t *length,
                  struct inst_msg *msg)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + bytes;
    char c[4];
    uint64_t room = 0, n = 0;
    while (p < end)
        room += put_point(c, next_point(&p, end));
    int rc = list_reserve(s->budget, (void **)&s->text, &s->text_capacity, 0, room, 1, msg);
    if (!rc)
        rc = list_reserve(s->budget, (void **)&s->subject, &s->subject_capacity, 0, room, 1, msg);
    if (rc)
        return rc;
    for (p = (const unsigned char *)text; p < end;) {
        uint32_t point = next_point(&p, end);
        put_point(s->subject + n, stand_in_for(point));
        n += put_point(s->text + n, point);
    }
    *length = n;
    return 0;
}

struct split {
    struct pre_splitter *splitter;
    const char *text, *subject;
    int (*word)(void *context, const char *text, uint64_t bytes);
    void *context;
    struct inst_msg *msg;
};

// Cuts [at, end) by the patterns from `stage` on; at most STAGES_MAX deep.
static int cut(const struct split *s, uint32_t stage, uint64_t at, uint64_t end)
{
    const struct pre *pre = s->splitter->pre;
    pcre2_match_data *match = s->splitter->match;
    if (stage == pre->stages)
        return s->word(s->context, s->text + at, end - at);
    const char *subject = s->subject + at;
    uint64_t bytes = end - at, done = 0;
    int rc = 0;
    while (!rc && done < bytes) {
        int found = pcre2_match(pre->stage[stage], (PCRE2_SPTR)subject, bytes, done,
                                PCRE2_NO_UTF_CHECK, match, pre->limits);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            return found == PCRE2_ERROR_HEAPLIMIT || found == PCRE2_ERROR_NOMEMORY
                       ? no_memory(s->msg)
                       : inst_fail(s->msg, INST_EINVAL,
                                   "pre-tokenizer '%s' gives up at byte %" PRIu64
                                   " of the text (PCRE2 error %d)",
                                   pre->rule->names[0], at + done, found);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
        uint64_t start = found < 0 ? bytes : range[0], stop = found < 0 ? bytes : range[1];
        if (start > done)
            rc = cut(s, stage + 1, at + done, at + start);
        if (!rc && stop > start)
            rc = cut(s, stage + 1, at + start, at + stop);
        done = stop;
    }
    return rc;
}

int pre_split(struct pre_splitter *splitter, const char *text, uint64_t bytes,
              int (*word)(void *context, const char *text, uint64_t bytes), void *context,
              struct inst_msg *msg)
{
    struct split s = {splitter, text, text, word, context, msg};
    if (!is_plain(text, bytes)) {
        int rc = repair(splitter, text, bytes, &bytes, msg);
        if (rc)
            return rc;
        s.text = splitter->text;
        s.subject = splitter->subject;
    }
    return cut(&s, 0, 0, bytes);
}
