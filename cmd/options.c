// SPDX-License-Identifier: Apache-2.0
#include "cmd/options.h"
#include "base/size.h"
#include "base/status.h"
#include "cmd/output_file.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool option_part(const char *text, double *out)
{
    char *end;
    bool part = !strncmp(text, "1/", 2);
    double value = strtod(part ? text + 2 : text, &end);
    value = part ? 1 / value : value;
    if (*end || end == text || !(value > 0 && value <= 1))
        return false;
    *out = value;
    return true;
}

int fail(int code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("instinfer: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

void warn(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("instinfer: warning: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
}

static int usage_error(const char *command, const char *name, const char *value, const char *what)
{
    if (value)
        return fail(EXIT_USAGE, "%s: %s: '%s' %s", command, name, value, what);
    return fail(EXIT_USAGE, "%s: %s %s", command, name, what);
}

// The whole text as an integer in [min, max]. 0, or a text that says what is wrong.
static const char *parse_integer(const char *text, long long min, unsigned long long max,
                                 unsigned long long *out, char why[96])
{
    const char *digits = text + (*text == '-');
    size_t n = strspn(digits, "0123456789");
    if (!n || digits[n])
        return "is not a whole number";
    errno = 0;
    unsigned long long magnitude = strtoull(digits, NULL, 10);
    bool negative = *text == '-' && magnitude;
    bool bad = errno == ERANGE;
    if (negative)
        bad |= min >= 0 || magnitude > (unsigned long long)-min;
    else
        bad |= magnitude > max || (min > 0 && magnitude < (unsigned long long)min);
    if (bad) {
        snprintf(why, 96, "is out of range (%lld to %llu)", min, max);
        return why;
    }
    *out = negative ? 0 - magnitude : magnitude;
    return NULL;
}

static const char *parse_float(const char *text, double min, double max, float *out, char why[96])
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text) || !isfinite(value) ||
        text[strspn(text, "+-")] == '0' + ('x' - '0'))
        return "is not a number";
    if (value < min || value > max) {
        snprintf(why, 96, "is out of range (%g to %g)", min, max);
        return why;
    }
    *out = (float)value;
    return NULL;
}

const char *option_size(const char *text, uint64_t *out)
{
    uint64_t value;
    int err = size_parse(text, strlen(text), &value);
    if (err == INST_ERANGE)
        return "is too large";
    if (err)
        return "is not a size (a number with K, M, G or T, for example 512M)";
    if (!value)
        return "must be more than 0";
    *out = value;
    return NULL;
}

bool option_numbers_default(struct option_numbers *list, uint64_t value)
{
    if (list->n)
        return true;
    list->items = calloc(1, sizeof *list->items);
    if (!list->items)
        return false;
    list->items[0] = value;
    list->n = 1;
    return true;
}

static const char *append(struct option_list *list, const char *value)
{
    const char **items = realloc(list->items, (list->n + 1) * sizeof *items);
    if (!items)
        return "does not fit in memory";
    list->items = items;
    items[list->n++] = value;
    return NULL;
}

// "1,2,3": the last of several options counts.
static const char *parse_numbers(const char *text, const struct option *o, char why[96])
{
    struct option_numbers *list = o->value;
    size_t room = 1;
    for (const char *p = text; *p; p++)
        room += *p == ',';
    free(list->items);
    *list = (struct option_numbers){.items = calloc(room, sizeof *list->items)};
    char *copy = strdup(text), *rest = copy;
    const char *wrong = copy && list->items ? NULL : "does not fit in memory";
    for (char *part; !wrong && (part = strsep(&rest, ","));) {
        unsigned long long n;
        wrong = parse_integer(part, (long long)o->min, (unsigned long long)o->max, &n, why);
        if (!wrong)
            list->items[list->n++] = n;
        else if (room > 1 && wrong != why)
            wrong = "is not a list of whole numbers like 1,2,3";
    }
    free(copy);
    return wrong;
}

static const char *store(const struct option *o, const char *text, char why[96])
{
    unsigned long long n;
    const char *wrong = NULL;
    switch (o->kind) {
    case OPTION_TEXT:
    case OPTION_INPUT:
    case OPTION_MODEL:
        *(const char **)o->value = text;
        return NULL;
    case OPTION_OUTPUT:
        ((struct output_file *)o->value)->path = text;
        return NULL;
    case OPTION_LIST:
        return append(o->value, text);
    case OPTION_NUMBERS:
        return parse_numbers(text, o, why);
    case OPTION_F32:
        return parse_float(text, o->min, o->max, o->value, why);
    case OPTION_SIZE:
        return option_size(text, o->value);
    case OPTION_U32:
    case OPTION_U64:
    case OPTION_I32:
        wrong = parse_integer(text, (long long)o->min, (unsigned long long)o->max, &n, why);
        if (wrong)
            return wrong;
        if (o->kind == OPTION_U32)
            *(uint32_t *)o->value = (uint32_t)n;
        else if (o->kind == OPTION_U64)
            *(uint64_t *)o->value = n;
        else
            *(int32_t *)o->value = (int32_t)n;
        return NULL;
    case OPTION_FLAG:
    case OPTION_HEADING:
        break;
    }
    return "is not an option with a value";
}

static void print_help(const struct options *options)
{
    // All of it at once, at the end: of a write before that nobody would know why it failed.
    static char whole[32 * 1024];
    setvbuf(stdout, whole, _IOFBF, sizeof whole);
    printf("usage: instinfer %s [options]%s%s\n%s\n", options->command,
           options->operands ? " " : "", options->operands ? options->operands : "",
           options->about);
    for (size_t i = 0; i < options->n_rows; i++) {
        const struct option *o = &options->rows[i];
        if (o->kind == OPTION_HEADING) {
            printf("\n%s:\n", o->name);
            continue;
        }
        char left[64], letter[8] = "    ";
        if (o->letter)
            snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "%s%s %s", letter, o->name, o->argument ? o->argument : "");
        printf("  %-28s %s\n", left, o->help);
    }
    printf("\n      %-26s %s\n", "--help", "this text");
}

static const struct option *find(const struct options *options, const char *arg, size_t bytes)
{
    for (size_t i = 0; i < options->n_rows; i++) {
        const struct option *o = &options->rows[i];
        if (o->kind == OPTION_HEADING)
            continue;
        if (strlen(o->name) == bytes && !memcmp(o->name, arg, bytes))
            return o;
        if (o->letter && bytes == 2 && arg[0] == '-' && arg[1] == o->letter)
            return o;
    }
    return NULL;
}

// One option at argv[*i]; moves *i over its value. 0 or an exit code.
static int parse_one(const struct options *options, int argc, char **argv, int *i)
{
    const char *arg = argv[*i], *equals = !strncmp(arg, "--", 2) ? strchr(arg, '=') : NULL;
    size_t bytes = equals ? (size_t)(equals - arg) : strlen(arg);
    const struct option *o = find(options, arg, bytes);
    if (!o)
        return fail(EXIT_USAGE, "%s: unknown option %s (see instinfer %s --help)", options->command,
                    arg, options->command);
    char name[40], why[96];
    snprintf(name, sizeof name, "%.*s", (int)bytes, arg);
    if (o->kind == OPTION_FLAG) {
        if (equals)
            return usage_error(options->command, name, NULL, "takes no value");
        *(bool *)o->value = true;
        return 0;
    }
    const char *value = equals ? equals + 1 : *i + 1 < argc ? argv[++*i] : NULL;
    if (!value)
        return usage_error(options->command, name, NULL, "needs a value");
    const char *wrong = store(o, value, why);
    return wrong ? usage_error(options->command, name, value, wrong) : 0;
}

bool options_parse(const struct options *options, int argc, char **argv, int *n_operands,
                   int *exit_code)
{
    bool only_operands = false;
    *n_operands = 0;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_operands && !strcmp(arg, "--")) {
            only_operands = true;
        } else if (!only_operands && (!strcmp(arg, "--help") || !strcmp(arg, "-h"))) {
            print_help(options);
            *exit_code = EXIT_OK;
            return false;
        } else if (!only_operands && arg[0] == '-' && arg[1]) {
            if ((*exit_code = parse_one(options, argc, argv, &i)))
                return false;
        } else if (!options->operands) {
            *exit_code = fail(EXIT_USAGE, "%s: unexpected argument '%s'", options->command, arg);
            return false;
        } else {
            argv[(*n_operands)++] = argv[i];
        }
    }
    return true;
}

void options_free(const struct options *options)
{
    for (size_t i = 0; i < options->n_rows; i++) {
        const struct option *o = &options->rows[i];
        if (o->kind == OPTION_LIST) {
            struct option_list *list = o->value;
            free(list->items);
            *list = (struct option_list){0};
        } else if (o->kind == OPTION_NUMBERS) {
            struct option_numbers *list = o->value;
            free(list->items);
            *list = (struct option_numbers){0};
        } else if (o->kind == OPTION_OUTPUT) {
            output_file_abandon(o->value);
        }
    }
}
