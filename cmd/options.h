// SPDX-License-Identifier: Apache-2.0
// Command line options as a table: one row per option gives parsing, range, error line and help.
// Accepted forms: -x VALUE, --name VALUE, --name=VALUE, "--" before operands.
#ifndef INST_CMD_OPTIONS_H
#define INST_CMD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

enum option_kind {
    OPTION_FLAG,    // bool *
    OPTION_TEXT,    // const char **
    OPTION_INPUT,   // const char **; a file that is read
    OPTION_MODEL,   // const char **; the same, with the other parts of a split model
    OPTION_OUTPUT,  // struct output_file *; see cmd/output_file.h
    OPTION_LIST,    // struct option_list *; may be given several times
    OPTION_NUMBERS, // struct option_numbers *; whole numbers with commas between them
    OPTION_U32,     // uint32_t *
    OPTION_U64,     // uint64_t *
    OPTION_I32,     // int32_t *
    OPTION_F32,     // float *
    OPTION_SIZE,    // uint64_t *, with K, M, G, T
    OPTION_HEADING, // a line of the help text
};

struct option_list {
    const char **items;
    size_t n;
};

struct option_numbers {
    uint64_t *items;
    size_t n;
};

struct option {
    const char *name; // with its dashes, or the text of a heading
    char letter;      // 0 = none
    enum option_kind kind;
    void *value;
    double min, max; // of numbers, each of several
    const char *argument, *help;
};

struct options {
    const char *command;  // "run"
    const char *operands; // for the usage line, NULL = takes none
    const char *about;    // one line
    const struct option *rows;
    size_t n_rows;
};

// Parses argv[1..]. Returns true when the command shall go on; false with *exit_code set when it
// shall end (an error line or the help text has been printed). Operands are moved to argv[0..n).
bool options_parse(const struct options *options, int argc, char **argv, int *n_operands,
                   int *exit_code);
// Frees the lists and abandons the outputs that were not closed.
void options_free(const struct options *options);

// "instinfer: ..." on stderr; returns `code`.
int fail(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// "instinfer: warning: ..." on stderr: the command goes on.
void warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// One number where the user gave none. False: out of memory.
bool option_numbers_default(struct option_numbers *list, uint64_t value);

// "64M" -> bytes. NULL, or what is wrong with it, to come behind the quoted text.
const char *option_size(const char *text, uint64_t *out);
// "1/8" or "0.125", of (0, 1]. False: it is something else.
bool option_part(const char *text, double *out);

#endif
