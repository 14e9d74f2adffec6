// SPDX-License-Identifier: Apache-2.0
#include "base/profile.h"
#include "base/profile_builtin.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char first_line[] = "instinfer profile 1";
// A name that is not here is a typing error, not somebody else's section.
static const char *const sections[] = {"flash",      "wear", "link", "engine",
                                       "controller", "dram", "gpu",  "host"};
enum { SECTIONS = sizeof sections / sizeof *sections, LINE_MAX_BYTES = 400 };

// ---- lines -------------------------------------------------------------------------------------

struct reader {
    struct profile *profile;
    const char *section;
    unsigned line;
    bool sourced; // by the comment above
    struct inst_msg *msg;
};

static int refuse(struct reader *r, const char *what, const char *text, size_t n)
{
    return inst_fail(r->msg, INST_EINVAL, "%s:%u: '%.*s' %s", r->profile->place, r->line,
                     n < 64 ? (int)n : 64, text, what);
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static void trim(const char **text, size_t *n)
{
    while (*n && is_blank(**text))
        ++*text, --*n;
    while (*n && is_blank((*text)[*n - 1]))
        --*n;
}

static bool is_key(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(text[i] >= 'a' && text[i] <= 'z') && text[i] != '_' &&
            !(i && text[i] >= '0' && text[i] <= '9'))
            return false;
    return n && n < PROFILE_KEY_MAX;
}

static const struct profile_entry *find(const struct profile *p, const char *section,
                                        const char *key)
{
    for (size_t i = 0; i < p->n; i++)
        if (!strcmp(p->entries[i].section, section) && !strcmp(p->entries[i].key, key))
            return &p->entries[i];
    return NULL;
}

static int read_section(struct reader *r, const char *text, size_t n)
{
    if (text[n - 1] != ']')
        return refuse(r, "is not a [section]", text, n);
    r->section = NULL;
    for (size_t i = 0; i < SECTIONS; i++)
        if (strlen(sections[i]) == n - 2 && !memcmp(sections[i], text + 1, n - 2))
            r->section = sections[i];
    return r->section ? 0 : refuse(r, "is not a section that is known", text, n);
}

static int read_entry(struct reader *r, const char *text, size_t n, bool comment)
{
    struct profile *p = r->profile;
    const char *equals = memchr(text, '=', n);
    if (!equals)
        return refuse(r, "is neither [section] nor key = value", text, n);
    const char *key = text, *value = equals + 1;
    size_t key_bytes = (size_t)(equals - text), value_bytes = n - key_bytes - 1;
    trim(&key, &key_bytes);
    trim(&value, &value_bytes);
    if (!is_key(key, key_bytes))
        return refuse(r, "is not a key (lower case letters, digits, _)", key, key_bytes);
    if (!value_bytes || value_bytes >= PROFILE_VALUE_MAX)
        return refuse(r, value_bytes ? "has a value that is too long" : "has no value", key,
                      key_bytes);
    if (!r->section)
        return refuse(r, "stands in front of the first [section]", key, key_bytes);
    if (p->n == PROFILE_ENTRIES_MAX)
        return refuse(r, "is one key too many", key, key_bytes);
    struct profile_entry *e = &p->entries[p->n];
    *e = (struct profile_entry){
        .section = r->section, .line = r->line, .sourced = comment || r->sourced};
    memcpy(e->key, key, key_bytes);
    memcpy(e->value, value, value_bytes);
    if (find(p, e->section, e->key))
        return refuse(r, "is said twice", key, key_bytes);
    p->n++;
    return 0;
}

static int read_line(struct reader *r, const char *text, size_t n)
{
    if (n > LINE_MAX_BYTES)
        return refuse(r, "begins a line that is too long", text, 16);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < ' ' && !is_blank(text[i]))
            return inst_fail(r->msg, INST_EINVAL, "%s:%u: not a text file", r->profile->place,
                             r->line);
    const char *hash = memchr(text, '#', n);
    if (hash)
        n = (size_t)(hash - text);
    trim(&text, &n);
    if (!n) {
        r->sourced = hash != NULL;
        return 0;
    }
    return *text == '[' ? read_section(r, text, n) : read_entry(r, text, n, hash != NULL);
}

int profile_parse(struct profile *profile, const char *place, const char *text, size_t bytes,
                  struct inst_msg *msg)
{
    struct reader r = {.profile = profile, .msg = msg};
    profile->n = 0;
    snprintf(profile->place, sizeof profile->place, "%s", place);
    for (size_t at = 0; at < bytes;) {
        const char *line = text + at, *end = memchr(line, '\n', bytes - at);
        size_t n = end ? (size_t)(end - line) : bytes - at;
        at += n + 1;
        if (r.line == 0) { // nothing in front of it, which could hide what the file is
            trim(&line, &n);
            r.line = 1;
            if (n != strlen(first_line) || memcmp(line, first_line, n))
                return inst_fail(msg, INST_EINVAL, "%s:1: not a profile: it does not begin '%s'",
                                 profile->place, first_line);
        } else {
            r.line++;
            int err = read_line(&r, line, n);
            if (err)
                return err;
        }
    }
    return profile->n ? 0 : inst_fail(msg, INST_EINVAL, "%s: an empty profile", profile->place);
}

// ---- opening -----------------------------------------------------------------------------------

const char *profile_builtin_name(size_t index)
{
    for (size_t i = 0; i < index; i++)
        if (!profile_builtin[i].name)
            return NULL;
    return profile_builtin[index].name;
}

static int open_file(struct profile *profile, const char *path, struct inst_msg *msg)
{
    char text[PROFILE_BYTES_MAX];
    FILE *file = fopen(path, "re");
    size_t n = file ? fread(text, 1, sizeof text, file) : 0;
    int failed = !file || ferror(file) ? errno : 0;
    if (file)
        fclose(file);
    if (failed)
        return inst_fail(msg, failed == ENOENT ? INST_ENOENT : INST_EIO, "%s: %s", path,
                         strerror(failed));
    if (n == sizeof text)
        return inst_fail(msg, INST_EINVAL, "%s: larger than any profile", path);
    return profile_parse(profile, path, text, n, msg);
}

int profile_open(struct profile *profile, const char *where, struct inst_msg *msg)
{
    static const char ending[] = ".profile";
    size_t n = strlen(where);
    if (strchr(where, '/') || (n > strlen(ending) && !strcmp(where + n - strlen(ending), ending)))
        return open_file(profile, where, msg);
    char names[160] = "";
    for (size_t i = 0; profile_builtin[i].name; i++) {
        if (!strcmp(profile_builtin[i].name, where))
            return profile_parse(profile, where, profile_builtin[i].text,
                                 strlen(profile_builtin[i].text), msg);
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", profile_builtin[i].name);
    }
    return inst_fail(msg, INST_ENOENT, "no profile '%.40s': there are %s, and files FILE.profile",
                     where, names);
}

// ---- values ------------------------------------------------------------------------------------

// In the unit that is stored. Sorted by nothing; the first that matches is taken.
static const struct unit {
    const char *name;
    enum profile_kind kind;
    double factor;
} units[] = {
    {"", PROFILE_COUNT, 1},          {"", PROFILE_BYTES, 1},
    {"B", PROFILE_BYTES, 1},         {"K", PROFILE_BYTES, 0x1p10},
    {"M", PROFILE_BYTES, 0x1p20},    {"G", PROFILE_BYTES, 0x1p30},
    {"T", PROFILE_BYTES, 0x1p40},    {"KiB", PROFILE_BYTES, 0x1p10},
    {"MiB", PROFILE_BYTES, 0x1p20},  {"GiB", PROFILE_BYTES, 0x1p30},
    {"TiB", PROFILE_BYTES, 0x1p40},  {"kB", PROFILE_BYTES, 1e3},
    {"MB", PROFILE_BYTES, 1e6},      {"GB", PROFILE_BYTES, 1e9},
    {"TB", PROFILE_BYTES, 1e12},     {"ns", PROFILE_NS, 1},
    {"us", PROFILE_NS, 1e3},         {"ms", PROFILE_NS, 1e6},
    {"s", PROFILE_NS, 1e9},          {"hours", PROFILE_NS, 3600e9},
    {"days", PROFILE_NS, 86400e9},   {"B/s", PROFILE_RATE, 1},
    {"kB/s", PROFILE_RATE, 1e3},     {"MB/s", PROFILE_RATE, 1e6},
    {"GB/s", PROFILE_RATE, 1e9},     {"TB/s", PROFILE_RATE, 1e12},
    {"MiB/s", PROFILE_RATE, 0x1p20}, {"GiB/s", PROFILE_RATE, 0x1p30},
    {"MFLOPS", PROFILE_FLOPS, 1e6},  {"GFLOPS", PROFILE_FLOPS, 1e9},
    {"TFLOPS", PROFILE_FLOPS, 1e12}, {"kHz", PROFILE_HERTZ, 1e3},
    {"MHz", PROFILE_HERTZ, 1e6},     {"GHz", PROFILE_HERTZ, 1e9},
    {"", PROFILE_NUMBER, 1},         {"%", PROFILE_NUMBER, 1e-2},
    {"ppm", PROFILE_NUMBER, 1e-6},
};

static const char *const examples[] = {
    [PROFILE_COUNT] = "a whole number, like 8",
    [PROFILE_BYTES] = "a size, like 4 KiB or 2 TB",
    [PROFILE_NS] = "a time, like 50 us or 30 days",
    [PROFILE_RATE] = "a rate, like 1.4 GB/s",
    [PROFILE_FLOPS] = "a speed, like 155 TFLOPS",
    [PROFILE_HERTZ] = "a frequency, like 285 MHz",
    [PROFILE_NUMBER] = "a number, like 0.85 or 12 %",
};

// Digits and decimals by hand: strtod would go by the locale, and take much that is no number here.
// What stands behind them is left in *text.
static bool read_digits(const char **text, double *out)
{
    enum { DIGITS_MOST = 15 }; // of which each has its own double
    uint64_t value = 0;
    double scale = 1;
    int digits = 0;
    bool point = false;
    const char *at = *text;
    for (; (*at >= '0' && *at <= '9') || (*at == '.' && !point && digits); at++) {
        if (*at == '.') {
            point = true;
            continue;
        }
        if (++digits > DIGITS_MOST)
            return false;
        value = 10 * value + (uint64_t)(*at - '0');
        scale *= point ? 10 : 1;
    }
    if (!digits || at[-1] == '.')
        return false;
    while (is_blank(*at))
        at++;
    *text = at;
    *out = (double)value / scale;
    return true;
}

static bool is_whole(enum profile_kind kind)
{
    return kind <= PROFILE_RATE;
}

static int read_value(const struct profile *p, const struct profile_entry *e,
                      const struct profile_field *f, struct inst_msg *msg)
{
    if (f->kind == PROFILE_TEXT) {
        *(const char **)f->out = e->value;
        return 0;
    }
    const char *unit = e->value;
    double value = 0;
    size_t i = 0, n = sizeof units / sizeof *units;
    bool ok = read_digits(&unit, &value);
    while (ok && i < n && (units[i].kind != f->kind || strcmp(units[i].name, unit) != 0))
        i++;
    ok = ok && i < n;
    value = ok ? value * units[i].factor : 0;
    // 1.4 * 1e9 is not exactly a whole number.
    if (ok && is_whole(f->kind)) {
        double whole = (double)(uint64_t)(value < 0x1p53 ? value + 0.5 : 0);
        double error = value > whole ? value - whole : whole - value;
        ok = value < 0x1p53 && error <= 1e-6 * (value > 1 ? value : 1) && error < 0.01;
        value = whole;
    }
    if (!ok)
        return inst_fail(msg, INST_EINVAL, "%s:%u: %s: '%s' is not %s", p->place, e->line, e->key,
                         e->value, examples[f->kind]);
    if (value < f->least || (f->most > 0 && value > f->most))
        return inst_fail(msg, INST_EINVAL, "%s:%u: %s: '%s' is %s than %.15g", p->place, e->line,
                         e->key, e->value, value < f->least ? "less" : "more",
                         value < f->least ? f->least : f->most);
    if (is_whole(f->kind))
        *(uint64_t *)f->out = (uint64_t)value;
    else
        *(double *)f->out = value;
    return 0;
}

bool profile_has(const struct profile *profile, const char *section)
{
    for (size_t i = 0; i < profile->n; i++)
        if (!strcmp(profile->entries[i].section, section))
            return true;
    return false;
}

int profile_read(const struct profile *profile, const char *section,
                 const struct profile_field *fields, size_t n, struct inst_msg *msg)
{
    if (!profile_has(profile, section))
        return inst_fail(msg, INST_ENOENT, "%s: has no [%s]", profile->place, section);
    for (size_t i = 0; i < profile->n; i++) {
        const struct profile_entry *e = &profile->entries[i];
        size_t f = 0;
        if (strcmp(e->section, section) != 0)
            continue;
        while (f < n && strcmp(fields[f].key, e->key) != 0)
            f++;
        if (f == n)
            return inst_fail(msg, INST_EINVAL, "%s:%u: [%s] knows no '%s'", profile->place, e->line,
                             section, e->key);
        int err = read_value(profile, e, &fields[f], msg);
        if (err)
            return err;
    }
    for (size_t f = 0; f < n; f++)
        if (!fields[f].optional && !find(profile, section, fields[f].key))
            return inst_fail(msg, INST_EINVAL, "%s: [%s] lacks '%s'", profile->place, section,
                             fields[f].key);
    return 0;
}

const char *profile_at(const struct profile *profile, const char *section, const char *key,
                       char out[PROFILE_PLACE_MAX + 64])
{
    const struct profile_entry *e = find(profile, section, key);
    if (e)
        snprintf(out, PROFILE_PLACE_MAX + 64, "%s:%u: %s", profile->place, e->line, key);
    else
        snprintf(out, PROFILE_PLACE_MAX + 64, "%s: %s", profile->place, key);
    return out;
}
