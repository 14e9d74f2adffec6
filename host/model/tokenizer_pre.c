// SPDX-License-Identifier: Apache-2.0
// A pre-tokenizer is a list of patterns. The first cuts the text into its matches and what lies
// between them, the next cuts each of those pieces, and so on; nothing looks across a cut. The
// patterns run in PCRE2 and are written so that every repeat is of a single character class: no
// text, however long, makes the matcher recurse or try a place more than a few times.
//
// The rules are those of the tokenizers that the models were trained with, as llama.cpp applies
// them, since ids are to equal its ids. What class a character has is not left to PCRE2, whose
// answer would change with the installed version: patterns see one byte for each character, itself
// where it is ASCII and a byte that says its class (unicode.h) where it is not. They are plain
// regular expressions over bytes.
#include "host/model/tokenizer_pre.h"

#include "base/checked.h"
#include "host/model/tokenizer_internal.h"
#include "host/model/unicode.h"

#include <inttypes.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { STAGES_MAX = 6, NAMES_MAX = 9 };

// What patterns see of a character beyond ASCII: a byte with its class in the low bits and, of
// pre-tokenizers that list characters, which lists it is in (MARKED_*; never white space).
enum {
    SEEN = 0x80,
    MARKED_PUNCTUATION = 0x10,
    MARKED_EAST_ASIAN = 0x20,
    MARKED_LETTER = 0x40,
};

// Insides of bracket expressions: ASCII of a class, and the bytes from SEEN on.
#define LETTER      "A-Za-z\\x81"
#define NUMBER      "0-9\\x83"
#define PUNCTUATION "!-#%-*,-/:;?@[-\\]_{}\\x84"
#define SPACE       "\\t-\\r \\x86"
// The same where characters may be marked.
#define ANY_NUMBER     "0-9\\x83\\x93\\xa3\\xb3\\xc3\\xd3\\xe3\\xf3"
#define IN_PUNCTUATION "\\x90-\\x9f\\xb0-\\xbf\\xd0-\\xdf\\xf0-\\xff"
#define IN_EAST_ASIAN  "\\xa0-\\xbf\\xe0-\\xff"
#define IN_LETTER      "\\xc0-\\xff"
// Letters without the other case of ASCII; letters beyond ASCII count as both cases.
#define UPPER "[A-Z\\x81]"
#define LOWER "[a-z\\x81]"

// Pieces that several pre-tokenizers share. Case-insensitive matching is spelled out: Unicode would
// fold the long s onto 's'.
#define CONTRACTION      "'s|'t|'re|'ve|'m|'ll|'d"
#define CONTRACTION_CASE "'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL]"
#define BEFORE_LETTERS   "[^\\r\\n" LETTER NUMBER "]?"
#define LETTERS_PREFIXED BEFORE_LETTERS "[" LETTER "]+"
#define OTHERS           " ?[^" SPACE LETTER NUMBER "]+"
#define SPACES_LEFT      "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define SPACES           "[" SPACE "]*[\\r\\n]+|" SPACES_LEFT
#define GPT2             CONTRACTION "| ?[" LETTER "]+| ?[" NUMBER "]+|" OTHERS "|" SPACES_LEFT
// Words in which the case changes at most once, from capitals to small letters.
#define CASED(END) BEFORE_LETTERS UPPER "*" LOWER "+" END "|" BEFORE_LETTERS UPPER "+" LOWER "*" END

struct pre_rule {
    const char *names[NAMES_MAX + 1];
    bool ignore_merges, add_bos;
    const char *patterns[STAGES_MAX + 1];
    unsigned (*marks)(uint32_t point); // NULL: nothing is marked
};

// The letters that the deepseek-llm tokenizer lists.
static const struct {
    uint32_t first, last;
} deepseek_letters[] = {
    {0xb5, 0xb5},       {0xc0, 0xd6},       {0xd8, 0xf6},       {0xf8, 0x1ba},
    {0x1bc, 0x1bf},     {0x1c4, 0x293},     {0x295, 0x2af},     {0x370, 0x373},
    {0x376, 0x376},     {0x377, 0x377},     {0x37b, 0x37d},     {0x37f, 0x37f},
    {0x386, 0x386},     {0x388, 0x38a},     {0x38c, 0x38c},     {0x38e, 0x3a1},
    {0x3a3, 0x3f5},     {0x3f7, 0x481},     {0x48a, 0x52f},     {0x531, 0x556},
    {0x10a0, 0x10c5},   {0x13a0, 0x13f5},   {0x13f8, 0x13fd},   {0x1c90, 0x1cba},
    {0x1cbd, 0x1cbf},   {0x1d00, 0x1d2b},   {0x1d6b, 0x1d77},   {0x1d79, 0x1d9a},
    {0x1e00, 0x1f15},   {0x1f18, 0x1f1d},   {0x1f20, 0x1f45},   {0x1f48, 0x1f4d},
    {0x1f50, 0x1f57},   {0x1f59, 0x1f59},   {0x1f5b, 0x1f5b},   {0x1f5d, 0x1f5d},
    {0x1f5f, 0x1f7d},   {0x1f80, 0x1fb4},   {0x1fb6, 0x1fbc},   {0x1fbe, 0x1fbe},
    {0x1fc2, 0x1fc4},   {0x1fc6, 0x1fcc},   {0x1fd0, 0x1fd3},   {0x1fd6, 0x1fdb},
    {0x1fe0, 0x1fec},   {0x1ff2, 0x1ff4},   {0x1ff6, 0x1ffc},   {0x2102, 0x2102},
    {0x2107, 0x2107},   {0x210a, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211d},
    {0x2124, 0x2124},   {0x2126, 0x2126},   {0x2128, 0x2128},   {0x212a, 0x212d},
    {0x212f, 0x2134},   {0x2139, 0x2139},   {0x213c, 0x213f},   {0x2145, 0x2149},
    {0x214e, 0x214e},   {0x2183, 0x2183},   {0x2184, 0x2184},   {0x2c00, 0x2c7b},
    {0x2c7e, 0x2ce4},   {0x2ceb, 0x2cee},   {0x2cf2, 0x2cf2},   {0x2cf3, 0x2cf3},
    {0xa640, 0xa66d},   {0xa680, 0xa69b},   {0xa722, 0xa76f},   {0xa771, 0xa787},
    {0xa78b, 0xa78e},   {0xab70, 0xabbf},   {0xfb00, 0xfb06},   {0xfb13, 0xfb17},
    {0xff21, 0xff3a},   {0xff41, 0xff5a},   {0x10400, 0x1044f}, {0x104b0, 0x104d3},
    {0x104d8, 0x104fb}, {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df},
    {0x1e900, 0x1e943},
};

static unsigned deepseek_marks(uint32_t point)
{
    size_t first = 0, end = sizeof deepseek_letters / sizeof *deepseek_letters;
    unsigned marks = 0;
    while (end - first > 1) {
        size_t middle = first + (end - first) / 2;
        if (deepseek_letters[middle].first <= point)
            first = middle;
        else
            end = middle;
    }
    if (point >= deepseek_letters[first].first && point <= deepseek_letters[first].last)
        marks |= MARKED_LETTER;
    if ((point >= 0xff01 && point <= 0xff0f) || (point >= 0xff1a && point <= 0xff5e) ||
        (point >= 0x2018 && point <= 0x201f) || point == 0x3001 || point == 0x3002)
        marks |= MARKED_PUNCTUATION;
    if ((point >= 0x800 && point <= 0x9fa5) || (point >= 0xac00 && point <= 0xd7ff))
        marks |= MARKED_EAST_ASIAN;
    return marks;
}

static const struct pre_rule rules[] = {
    {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "mellum", "a.x-4.0"},
     false,
     false,
     {GPT2},
     NULL},
    {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
     true,
     true,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|[" NUMBER "]{1,3}|" OTHERS "[\\r\\n]*|" SPACES},
     NULL},
    {{"dbrx", "smaug-bpe"},
     false,
     false,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|[" NUMBER "]{1,3}|" OTHERS "[\\r\\n]*|" SPACES},
     NULL},
    {{"qwen2", "deepseek-r1-qwen", "kormo", "stablelm2"},
     false,
     false,
     {CONTRACTION_CASE "|" LETTERS_PREFIXED "|[" NUMBER "]|" OTHERS "[\\r\\n]*|" SPACES},
     NULL},
    {{"smollm", "starcoder", "refact", "command-r", "codeshell"},
     false,
     false,
     {"[" NUMBER "]", GPT2},
     NULL},
    {{"tekken"}, true, true, {CASED("") "|[" NUMBER "]|" OTHERS "[\\r\\n/]*|" SPACES}, NULL},
    {{"gpt-4o", "llama4", "kanana2", "talkie"},
     false,
     false,
     {CASED("(?:" CONTRACTION_CASE ")?") "|[" NUMBER "]{1,3}|" OTHERS "[\\r\\n/]*|" SPACES},
     NULL},
    {{"deepseek-llm"},
     false,
     false,
     {"[\\r\\n]", "[" SPACE "]?[A-Za-z" IN_LETTER "]+", "[" SPACE "]?[!-/:-~" IN_PUNCTUATION "]+",
      "(?<![" SPACE "])[" SPACE "]++\\z", "[" IN_EAST_ASIAN "]+", "[" ANY_NUMBER "]+"},
     deepseek_marks},
    {{"default", ""},
     false,
     false,
     {"[" PUNCTUATION "$+<=>^~|]+", GPT2, "[" NUMBER "]+", "[0-9][0-9][0-9]"},
     NULL},
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
    // Where the text cannot be used as it is: what the patterns see, and the repaired text.
    char *subject, *text;
    uint64_t subject_capacity, text_capacity;
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
        pre->stage[i] = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                      PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &error, &at, context);
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

// What the patterns see of a character. `run` is that of the one before, for most are alike.
static char seen(const struct pre_rule *rule, struct unicode_run *run, uint32_t point)
{
    if (point < SEEN)
        return (char)point;
    if (point < run->first || point >= run->end)
        *run = unicode_run_of(point);
    unsigned marks = rule->marks && run->class != UNICODE_SPACE ? rule->marks(point) : 0;
    return (char)(SEEN | marks | (unsigned)run->class);
}

static bool is_ascii(const char *text, uint64_t bytes)
{
    unsigned char all = 0;
    for (uint64_t i = 0; i < bytes; i++)
        all |= (unsigned char)text[i];
    return all < 0x80;
}

struct split {
    struct pre_splitter *splitter;
    const char *subject, *text; // text: what is not yet given as words
    bool bytes;                 // every character is one byte of the text
    int (*word)(void *context, const char *text, uint64_t bytes);
    void *context;
    struct inst_msg *msg;
};

// Makes what the patterns see of a text and, where bytes are no UTF-8, the text in which each of
// them is three.
static int look(struct split *s, uint64_t bytes, uint64_t *characters)
{
    struct pre_splitter *p = s->splitter;
    const unsigned char *start = (const unsigned char *)s->text, *end = start + bytes;
    struct unicode_run run = {0};
    uint64_t n = 0, room = 0;
    bool whole = true;
    char c[4];
    for (const unsigned char *at = start; at < end; n++) {
        const unsigned char *from = at;
        uint32_t length = put_point(c, next_point(&at, end));
        whole = whole && length == at - from;
        room += length;
    }
    int rc = list_reserve(p->budget, (void **)&p->subject, &p->subject_capacity, 0, n, 1, s->msg);
    if (!rc && !whole)
        rc = list_reserve(p->budget, (void **)&p->text, &p->text_capacity, 0, room, 1, s->msg);
    if (rc)
        return rc;
    n = room = 0;
    for (const unsigned char *at = start; at < end; n++) {
        uint32_t point = next_point(&at, end);
        p->subject[n] = seen(p->pre->rule, &run, point);
        if (!whole)
            room += put_point(p->text + room, point);
    }
    s->subject = p->subject;
    if (!whole)
        s->text = p->text;
    *characters = n;
    return 0;
}

// Gives the next n characters of the text as a word.
static int give(struct split *s, uint64_t n)
{
    const char *word = s->text;
    if (s->bytes) {
        s->text += n;
    } else {
        for (; n > 0; n--) {
            unsigned char first = (unsigned char)*s->text;
            s->text += first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
        }
    }
    return s->word(s->context, word, (uint64_t)(s->text - word));
}

// Cuts characters [at, end) by the patterns from `stage` on; at most STAGES_MAX deep.
static int cut(struct split *s, uint32_t stage, uint64_t at, uint64_t end)
{
    const struct pre *pre = s->splitter->pre;
    pcre2_match_data *match = s->splitter->match;
    if (stage == pre->stages)
        return give(s, end - at);
    const char *subject = s->subject + at;
    uint64_t length = end - at, done = 0;
    int rc = 0;
    while (!rc && done < length) {
        int found = pcre2_match(pre->stage[stage], (PCRE2_SPTR)subject, length, done, 0, match,
                                pre->limits);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            return found == PCRE2_ERROR_HEAPLIMIT || found == PCRE2_ERROR_NOMEMORY
                       ? no_memory(s->msg)
                       : inst_fail(s->msg, INST_EINVAL,
                                   "pre-tokenizer '%s' gives up at character %" PRIu64
                                   " of the text (PCRE2 error %d)",
                                   pre->rule->names[0], at + done, found);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(match);
        uint64_t start = found < 0 ? length : range[0], stop = found < 0 ? length : range[1];
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
    struct split s = {splitter, text, text, is_ascii(text, bytes), word, context, msg};
    int rc = s.bytes ? 0 : look(&s, bytes, &bytes);
    return rc ? rc : cut(&s, 0, 0, bytes);
}
