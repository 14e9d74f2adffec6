// SPDX-License-Identifier: Apache-2.0
#include "host/model/template_text.h"

#include <string.h>

// A text is printed as: DATA and what stands outside of tags; VARIABLE or BLOCK, the tag's code and
// END. Code has no white space but one space between words and between signs that would join. A
// literal is LITERAL, its characters and END, whatever its quotes; line breaks and quotes in it are
// themselves, other escapes stay as they are. OWN stands for an own system text. The header names
// two of the signs.
enum { DATA = 1, VARIABLE, BLOCK, LITERAL, END, OWN, SIGNS };
enum { TAIL = 32 };

struct reader {
    struct gguf_string rest;
    const struct template_place *place; // what to look for or to take out
    const struct template_own *own;     // NULL: look for it
    struct template_own found;
    uint64_t print;
    uint64_t printed;
    char tail[TAIL]; // what was printed last, in turn
    bool in_data;    // the last thing was DATA
    bool line_start; // as Jinja has it: before the next character a line begins
    char trims;      // what the last tag does to the data behind it: '-' all white space, '\n' one
};

static void put(struct reader *r, char c)
{
    r->print = (r->print ^ (unsigned char)c) * UINT64_C(0x100000001b3); // FNV-1a
    r->tail[r->printed++ % TAIL] = c;
}

static bool behind(const struct reader *r, const char *code)
{
    size_t n = strlen(code);
    bool same = n <= TAIL && n <= r->printed;
    for (size_t i = 0; same && i < n; i++)
        same = r->tail[(r->printed - n + i) % TAIL] == code[i];
    return same;
}

static void advance(struct gguf_string *s, uint64_t n)
{
    *s = (struct gguf_string){s->data + n, s->bytes - n};
}

static bool starts(struct gguf_string s, const char *word)
{
    size_t n = strlen(word);
    return s.bytes >= n && !memcmp(s.data, word, n);
}

// Bytes of the white space character that the text starts with, 0 when it starts with another.
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

struct gguf_string template_text_trim(struct gguf_string s, bool start, bool end)
{
    uint64_t n;
    while (start && (n = space_at(s.data, s.bytes)))
        advance(&s, n);
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

// A line break however it is written: its bytes, 0 for none.
static uint64_t break_at(struct gguf_string s)
{
    if (!s.bytes || (*s.data != '\n' && *s.data != '\r'))
        return 0;
    return starts(s, "\r\n") ? 2 : 1;
}

// Takes one character of a literal: as it is printed, one byte or an escape's two.
static unsigned take_character(struct gguf_string *s, char out[2])
{
    static const char from[] = "nrt'\"", to[] = "\n\r\t'\"";
    uint64_t line = break_at(*s);
    out[0] = line ? '\n' : *s->data;
    if (*s->data != '\\' || s->bytes < 2) {
        advance(s, line ? line : 1);
        return 1;
    }
    const char *simple = memchr(from, s->data[1], sizeof from - 1);
    out[1] = s->data[1];
    if (simple)
        out[0] = to[simple - from];
    advance(s, 2);
    return simple ? 1 : 2;
}

// Skips `words` in a literal.
static bool skip_words(struct gguf_string *s, const char *words)
{
    struct gguf_string rest = *s;
    for (char c[2]; *words; words++)
        if (!rest.bytes || take_character(&rest, c) != 1 || c[0] != *words)
            return false;
    *s = rest;
    return true;
}

// What stands between the place's words; leaves the literal behind it. Escapes that nobody here
// decodes are none of a text.
static bool take_own(const struct template_place *place, struct gguf_string *s,
                     struct gguf_string *own)
{
    struct gguf_string rest = *s;
    if (!skip_words(&rest, place->before))
        return false;
    *own = rest;
    while (rest.bytes) {
        struct gguf_string end = rest;
        char c[2];
        if (*place->after && skip_words(&end, place->after))
            break;
        if (take_character(&rest, c) == 2 && c[1] != '\\')
            return false;
    }
    own->bytes = (uint64_t)(rest.data - own->data);
    *s = rest;
    return own->bytes && (rest.bytes || !*place->after);
}

static bool same(struct gguf_string a, struct gguf_string b)
{
    return b.data && a.bytes == b.bytes && !memcmp(a.data, b.data, a.bytes);
}

// Looks for the own text in a literal, or takes out what was found.
static void put_literal(struct reader *r, struct gguf_string s)
{
    const struct template_place *place = r->place;
    struct gguf_string part = {0}, rest = s;
    bool first = place && behind(r, place->code) && take_own(place, &rest, &part);
    bool second = place && place->code_after && behind(r, place->code_after);
    if (!r->own && first && !r->found.part[0].data)
        r->found.part[0] = part;
    if (!r->own && second && r->found.part[0].data && !r->found.part[1].data)
        r->found.part[1] = s;
    put(r, LITERAL);
    if (r->own && first && same(part, r->own->part[0])) {
        for (const char *c = place->before; *c; c++)
            put(r, *c);
        put(r, OWN);
        s = rest;
    } else if (r->own && (same(s, r->own->part[0]) || (second && same(s, r->own->part[1])))) {
        put(r, OWN);
        s.bytes = 0;
    }
    while (s.bytes) {
        char c[2];
        unsigned n = take_character(&s, c);
        for (unsigned i = 0; i < n; i++)
            put(r, c[i]);
    }
    put(r, END);
}

static bool read_literal(struct reader *r)
{
    char quote = *r->rest.data;
    struct gguf_string s = r->rest;
    advance(&s, 1);
    const char *start = s.data;
    while (s.bytes && *s.data != quote)
        advance(&s, *s.data == '\\' && s.bytes > 1 ? 2 : 1);
    if (!s.bytes)
        return false;
    put_literal(r, (struct gguf_string){start, (uint64_t)(s.data - start)});
    advance(&s, 1);
    r->rest = s;
    return true;
}

// What stands outside of tags up to the next one, whose first bytes are `tag`.
static void read_data(struct reader *r, uint64_t bytes, const char *tag, uint64_t tag_bytes)
{
    struct gguf_string s = {r->rest.data, bytes};
    char sign = tag_bytes > 2 ? tag[2] : 0;
    uint64_t line = r->trims == '\n' ? break_at(s) : 0;
    r->line_start = line || (r->line_start && !r->trims);
    advance(&s, line);
    s = template_text_trim(s, r->trims == '-', sign == '-' && tag_bytes);
    if (tag_bytes && tag[1] != '{' && sign != '-' && sign != '+') {
        struct gguf_string kept = template_text_trim(s, false, true);
        const char *end = s.data + s.bytes, *from = kept.data + kept.bytes, *at = end;
        while (at > from && at[-1] != '\n' && at[-1] != '\r')
            at--;
        if (at > from || (r->line_start && !kept.bytes))
            s.bytes = (uint64_t)(at - s.data);
    }
    if (s.bytes && !r->in_data)
        put(r, DATA);
    r->in_data = r->in_data || s.bytes;
    while (s.bytes) {
        line = break_at(s);
        put(r, line ? '\n' : *s.data);
        advance(&s, line ? line : 1);
    }
    r->line_start = false;
    advance(&r->rest, bytes);
}

static bool read_comment(struct reader *r)
{
    const char *end = memmem(r->rest.data, r->rest.bytes, "#}", 2);
    if (!end)
        return false;
    char before = end > r->rest.data ? end[-1] : 0;
    r->trims = before == '-' ? '-' : before == '+' ? '+' : '\n';
    advance(&r->rest, (uint64_t)(end - r->rest.data) + 2);
    return true;
}

static bool is_word(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80;
}

// Bytes of the tag's end here, 0 when it goes on.
static uint64_t end_of_tag(struct reader *r, bool block)
{
    struct gguf_string s = r->rest;
    bool sign = *s.data == '-' || (block && *s.data == '+');
    if (sign)
        advance(&s, 1);
    if (!starts(s, block ? "%}" : "}}"))
        return 0;
    r->trims = sign ? *r->rest.data : block ? '\n' : '+';
    return sign ? 3 : 2;
}

static bool read_code(struct reader *r, bool block)
{
    static const char joining[] = "<>=!*/";
    char last = 0;
    uint64_t depth = 0, n;
    bool space = false;
    put(r, block ? BLOCK : VARIABLE);
    r->in_data = false;
    while (r->rest.bytes) {
        char c = *r->rest.data;
        if (!depth && (n = end_of_tag(r, block))) {
            advance(&r->rest, n);
            put(r, END);
            return true;
        }
        if ((n = space_at(r->rest.data, r->rest.bytes))) {
            space = true;
            advance(&r->rest, n);
            continue;
        }
        if (c == '\'' || c == '"') {
            if (!read_literal(r))
                return false;
            last = 0;
        } else {
            bool joins = (is_word(last) && is_word(c)) ||
                         (last && strchr(joining, last) && strchr(joining, c));
            if (space && joins)
                put(r, ' ');
            put(r, last = c);
            advance(&r->rest, 1);
            depth += c == '(' || c == '[' || c == '{';
            depth -= depth && (c == ')' || c == ']' || c == '}');
        }
        space = false;
    }
    return false;
}

static bool read_tag(struct reader *r)
{
    char kind = r->rest.data[1];
    advance(&r->rest, 2);
    if (r->rest.bytes && (*r->rest.data == '-' || *r->rest.data == '+'))
        advance(&r->rest, 1);
    return kind == '#' ? read_comment(r) : read_code(r, kind == '%');
}

static uint64_t next_tag(struct gguf_string s)
{
    uint64_t at = 0;
    for (; at < s.bytes; at++)
        if (s.data[at] == '{' && at + 1 < s.bytes && s.data[at + 1] &&
            strchr("{%#", s.data[at + 1]))
            break;
    return at;
}

static bool read_all(struct reader *r, struct gguf_string text)
{
    for (uint64_t i = 0; i < text.bytes; i++)
        if ((unsigned char)text.data[i] < SIGNS)
            return false;
    // One line break at the end is no part of a template.
    if (text.bytes && (text.data[text.bytes - 1] == '\n' || text.data[text.bytes - 1] == '\r'))
        text.bytes -= text.bytes > 1 && !memcmp(text.data + text.bytes - 2, "\r\n", 2) ? 2 : 1;
    r->rest = text;
    r->print = UINT64_C(0xcbf29ce484222325);
    r->line_start = true;
    while (r->rest.bytes) {
        uint64_t n = next_tag(r->rest);
        read_data(r, n, r->rest.data + n, r->rest.bytes - n);
        if (r->rest.bytes && !read_tag(r))
            return false;
    }
    return true;
}

bool template_text_own(struct gguf_string text, const struct template_place *place,
                       struct template_own *own)
{
    struct reader r = {.place = place};
    bool read = read_all(&r, text);
    *own = r.found;
    return read && own->part[0].data && (own->part[1].data || !place->code_after);
}

uint64_t template_text_print(struct gguf_string text, const struct template_place *place,
                             const struct template_own *own)
{
    struct reader r = {.place = place, .own = own};
    return read_all(&r, text) ? r.print : 0;
}
