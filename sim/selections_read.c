// SPDX-License-Identifier: Apache-2.0
// Reads the text of selections.h: lines of numbers, nothing else.
#include "sim/selections_own.h"
#include "base/checked.h"
#include "kernels/kv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct scan {
    const char *name, *at, *end; // of the line
    unsigned line;
    struct inst_msg *msg;
};

static int refuse(const struct scan *s, const char *what)
{
    return inst_fail(s->msg, INST_EINVAL, "%s:%u: %s", s->name, s->line, what);
}

static bool take_char(struct scan *s, char c)
{
    if (s->at == s->end || *s->at != c)
        return false;
    s->at++;
    return true;
}

static bool take_word(struct scan *s, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0)
        return false;
    s->at += n;
    return true;
}

static bool take_number(struct scan *s, uint64_t most, uint64_t *out)
{
    const char *first = s->at;
    uint64_t value = 0;
    for (; s->at < s->end && *s->at >= '0' && *s->at <= '9'; s->at++) {
        value = 10 * value + (uint64_t)(*s->at - '0');
        if (value > most)
            return false;
    }
    *out = value;
    return s->at > first;
}

static bool take_field(struct scan *s, const char *key, uint64_t least, uint64_t most,
                       uint32_t *out)
{
    uint64_t value;
    if (!take_char(s, ' ') || !take_word(s, key) || !take_char(s, '=') ||
        !take_number(s, most, &value) || value < least)
        return false;
    *out = (uint32_t)value;
    return true;
}

// Room for n elements more, doubled each time: what the text holds, not what it claims.
static int grow(void **array, size_t *room, size_t used, size_t n, size_t each, struct scan *s)
{
    if (used + n <= *room)
        return 0;
    size_t more = 2 * (used + n) + 64;
    void *at = realloc(*array, more * each);
    if (!at)
        return inst_fail(s->msg, INST_ENOMEM, "%s: out of memory", s->name);
    *array = at;
    *room = more;
    return 0;
}

static bool power_of_two(uint32_t n)
{
    return n && !(n & (n - 1));
}

// drive N METHOD TYPE page=B heads=N dim=N group=N part=N page_channels=N
static int read_layout(struct selections *t, struct scan *s)
{
    uint64_t drive;
    struct selections_layout l = {0};
    if (!take_number(s, SELECTIONS_DRIVES_MAX - 1, &drive) || !take_char(s, ' '))
        return refuse(s, "no number of a drive");
    l.sparf = take_word(s, "sparf");
    if (!l.sparf && !take_word(s, "pages"))
        return refuse(s, "a method other than sparf and pages");
    while (take_char(s, ' ') && l.kv_type < KV_TYPES && !take_word(s, kv_type_name(l.kv_type))) {
        s->at--;
        l.kv_type++;
    }
    if (l.kv_type == KV_TYPES || !take_field(s, "page", 512, 1 << 20, &l.page_bytes) ||
        !take_field(s, "heads", 1, 65536, &l.kv_heads) ||
        !take_field(s, "dim", 1, 4096, &l.head_dim) ||
        !take_field(s, "group", 16, 65536, &l.group_tokens) ||
        !take_field(s, "part", 16, 65536, &l.part_tokens) ||
        !take_field(s, "page_channels", 0, 4096, &l.page_channels) || s->at != s->end)
        return refuse(s, "a layout that cannot be");
    if (!power_of_two(l.page_bytes) || !power_of_two(l.group_tokens) ||
        !power_of_two(l.part_tokens) || l.part_tokens > l.group_tokens ||
        (l.sparf && !power_of_two(l.page_channels)))
        return refuse(s, "a layout whose sizes are no powers of two");
    if (t->known[drive])
        return refuse(s, "a drive that was there before");
    if (t->drives && l.sparf != t->sparf)
        return refuse(s, "two methods in one file");
    t->sparf = l.sparf;
    t->known[drive] = true;
    t->layouts[drive] = l;
    t->drives++;
    return 0;
}

static int read_channels(struct selections *t, struct scan *s, struct record *r,
                         const struct selections_layout *l)
{
    uint64_t last = 0, c;
    r->channels_at = t->n_channels;
    if (take_char(s, '-'))
        return 0;
    if (!l->page_channels)
        return refuse(s, "channels where there are no channel pages");
    do {
        if (!take_number(s, l->head_dim - 1, &c) || (r->n_channels && c <= last))
            return refuse(s, "channels that do not ascend");
        int err = grow((void **)&t->channels, &t->channels_room, t->n_channels, 1,
                       sizeof *t->channels, s);
        if (err)
            return err;
        t->channels[t->n_channels++] = (uint16_t)c;
        r->n_channels++;
        last = c;
    } while (take_char(s, ','));
    return 0;
}

// GAP[+MORE],...: so many tokens are not chosen, then one and MORE are.
static int read_runs(struct selections *t, struct scan *s, struct record *r)
{
    uint64_t at = 0, gap, more;
    r->runs_at = t->n_runs;
    if (take_char(s, '-'))
        return 0;
    do {
        more = 0;
        if (!take_number(s, SELECTIONS_TOKENS_MAX, &gap) ||
            (take_char(s, '+') && !take_number(s, SELECTIONS_TOKENS_MAX, &more)) ||
            (r->n_runs && !gap) || at + gap + more + 1 > r->tokens)
            return refuse(s, "chosen tokens that do not ascend or are beyond the last one");
        int err = grow((void **)&t->runs, &t->runs_room, t->n_runs, 1, sizeof *t->runs, s);
        if (err)
            return err;
        t->runs[t->n_runs++] = (struct run){(uint32_t)(at + gap), (uint32_t)(at + gap + more + 1)};
        r->n_runs++;
        r->chosen += more + 1;
        at += gap + more + 1;
    } while (take_char(s, ','));
    return 0;
}

// DRIVE LAYER SEQUENCE HEAD TOKENS FLASH RANKED CHANNELS RUNS
static int read_record(struct selections *t, struct scan *s)
{
    uint64_t n[7];
    static const uint64_t most[] = {SELECTIONS_DRIVES_MAX - 1,
                                    65535,
                                    UINT32_MAX,
                                    65535,
                                    SELECTIONS_TOKENS_MAX,
                                    SELECTIONS_TOKENS_MAX,
                                    SELECTIONS_TOKENS_MAX};
    for (size_t i = 0; i < 7; i++)
        if (!take_number(s, most[i], &n[i]) || !take_char(s, ' '))
            return refuse(s, "not DRIVE LAYER SEQUENCE HEAD TOKENS FLASH RANKED CHANNELS RUNS");
    struct record r = {.drive = (uint32_t)n[0],
                       .layer = (uint32_t)n[1],
                       .sequence = (uint32_t)n[2],
                       .head = (uint32_t)n[3],
                       .tokens = n[4],
                       .flash_tokens = n[5],
                       .ranked_tokens = n[6]};
    if (!t->known[r.drive])
        return refuse(s, "a drive whose layout is not there");
    const struct selections_layout *l = &t->layouts[r.drive];
    if (!r.tokens || r.flash_tokens > r.tokens || r.ranked_tokens > r.tokens ||
        r.head >= l->kv_heads)
        return refuse(s, "numbers that do not fit together");
    int err = read_channels(t, s, &r, l);
    if (!err && !take_char(s, ' '))
        err = refuse(s, "no chosen tokens");
    err = err ? err : read_runs(t, s, &r);
    if (!err && s->at != s->end)
        err = refuse(s, "more than a record");
    err =
        err ? err
            : grow((void **)&t->records, &t->records_room, t->n_records, 1, sizeof *t->records, s);
    if (err)
        return err;
    t->tokens += r.tokens;
    r.tokens_end = t->tokens;
    t->records[t->n_records++] = r;
    return 0;
}

int selections_parse(struct selections **out, const char *name, const char *text, size_t bytes,
                     struct inst_msg *msg)
{
    struct scan s = {.name = name, .msg = msg};
    struct selections *t = calloc(1, sizeof *t);
    int err = t ? 0 : inst_fail(msg, INST_ENOMEM, "%s: out of memory", name);
    *out = NULL;
    for (const char *at = text, *end = text + bytes, *stop; at < end && !err; at = stop + 1) {
        stop = memchr(at, '\n', (size_t)(end - at));
        stop = stop ? stop : end;
        s.at = at;
        s.end = stop;
        s.line++;
        if (s.line == 1)
            err = take_word(&s, SELECTIONS_HEAD) && s.at == s.end
                      ? 0
                      : refuse(&s, "no recorded selections: '" SELECTIONS_HEAD "' is missing");
        else if (s.at == s.end || *s.at == '#')
            continue;
        else
            err = take_word(&s, "drive ") ? read_layout(t, &s) : read_record(t, &s);
        if (stop == end)
            break;
    }
    if (!err && !t->n_records)
        err = inst_fail(msg, INST_EINVAL, "%s: no selections in it", name);
    if (err) {
        selections_free(t);
        return err;
    }
    *out = t;
    return 0;
}

int selections_open(struct selections **out, const char *path, struct inst_msg *msg)
{
    char *text = NULL;
    size_t room = 0, used = 0, n = 1;
    struct scan s = {.name = path, .msg = msg};
    *out = NULL;
    FILE *f = fopen(path, "rb");
    if (!f)
        return inst_fail(msg, errno == ENOENT ? INST_ENOENT : INST_EIO, "%s: %s", path,
                         strerror(errno));
    int err = 0;
    while (!err && n) {
        err = grow((void **)&text, &room, used, 65536, 1, &s);
        n = err ? 0 : fread(text + used, 1, 65536, f);
        used += n;
        if (used > SELECTIONS_BYTES_MAX)
            err = inst_fail(msg, INST_EINVAL, "%s: longer than %d MiB", path,
                            SELECTIONS_BYTES_MAX >> 20);
    }
    if (!err && ferror(f))
        err = inst_fail(msg, INST_EIO, "%s: %s", path, strerror(errno));
    fclose(f);
    err = err ? err : selections_parse(out, path, text, used, msg);
    free(text);
    return err;
}

void selections_free(struct selections *t)
{
    if (!t)
        return;
    free(t->records);
    free(t->runs);
    free(t->channels);
    free(t);
}
