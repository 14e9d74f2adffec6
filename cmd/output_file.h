// SPDX-License-Identifier: Apache-2.0
// The one way in which a command writes a file. Every place is looked at before the work starts:
// what cannot be written, or is one of the files that the command reads, is refused there. The new
// file is made beside the old one, under a name of its own, and takes its place when it is whole; a
// run that fails, a signal or a full disk leaves the old one as it was. A symbolic link stays and
// the file behind it is replaced, with its permissions. What is no regular file (a device, a pipe)
// and what is open already (-, /dev/stdout, /dev/fd/N) is written to straight and never removed.
//
// A command has a row of kind OPTION_OUTPUT for each file, calls output_files_open once its options
// are known to make sense, writes to `stream`, and calls output_file_close when all of it is there.
#ifndef INST_CMD_OUTPUT_FILE_H
#define INST_CMD_OUTPUT_FILE_H

#include "cmd/options.h"

#include <stdio.h>

enum { OUTPUT_FILES_MAX = 8 }; // of one command

struct output_file {
    const char *path;       // as the user wrote it; NULL: not asked for
    bool new_only;          // a file that is there already is an error
    const char *unfinished; // its name until it is complete, taken over from whoever left one
                            // there; NULL: one of its own beside the target
    FILE *stream;          // to write to; NULL: not open
    char *target;          // what it becomes, links followed; NULL: written to straight
    bool replaces;         // something is there
    _Atomic(char *) *name; // of the unfinished file, for whoever has to remove it
};

// Opens all outputs among the options that are not open, or none of them at all. Each is compared with the options of kinds
// OPTION_INPUT and OPTION_MODEL, with the open standard streams and with the other outputs. 0 or an
// exit code, with the error line printed.
int output_files_open(const struct options *options);

// Says early that the disk has no room for `bytes`. 0 or an exit code.
int output_file_reserve(struct output_file *out, uint64_t bytes);

// Puts the file in its place. 0 or an exit code; 0 for one that is not open.
int output_file_close(struct output_file *out);
// The error line of a write that has just failed; an exit code.
int output_file_failed(const struct output_file *out);

// Forgets a file that was not closed, as if nothing had been written. options_free does that.
void output_file_abandon(struct output_file *out);

// Removes all unfinished files; for signal handlers that do not return.
void output_files_discard(void);

#endif
