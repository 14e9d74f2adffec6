// SPDX-License-Identifier: Apache-2.0
// Profiles: small text files that describe hardware (docs/profiles.md), those of profiles/ built
// in. A profile is parsed into values as they stand there; whoever needs a section reads it with a
// table of the keys that it knows. Knows no hardware itself. Allocates nothing.
#ifndef INST_BASE_PROFILE_H
#define INST_BASE_PROFILE_H

#include "base/status.h"

#include <stddef.h>

enum {
    PROFILE_ENTRIES_MAX = 192,
    PROFILE_KEY_MAX = 32,
    PROFILE_VALUE_MAX = 80,
    PROFILE_PLACE_MAX = 96,
    PROFILE_BYTES_MAX = 64 << 10,
};

// What a value is, and in what it is stored. Whole numbers are uint64_t, the others double.
enum profile_kind {
    PROFILE_COUNT,  // 8                                  uint64_t
    PROFILE_BYTES,  // 4 KiB, 2 TB, 16K (as K is said elsewhere: 1024)  uint64_t
    PROFILE_NS,     // 50 us, 3 ms, 30 days               uint64_t, nanoseconds
    PROFILE_RATE,   // 1.4 GB/s (decimal), 2 GiB/s        uint64_t, bytes per second
    PROFILE_FLOPS,  // 155 TFLOPS                         double, per second
    PROFILE_HERTZ,  // 285 MHz                            double
    PROFILE_NUMBER, // 0.85, 12 %, 120 ppm                double
    PROFILE_TEXT,   // anything                           const char *, the profile's
};

struct profile_entry {
    const char *section; // one of the known names
    char key[PROFILE_KEY_MAX], value[PROFILE_VALUE_MAX];
    unsigned line;
    bool sourced; // a comment behind it or above it says where it comes from
};

struct profile {
    char place[PROFILE_PLACE_MAX]; // for messages: the name, or the file
    struct profile_entry entries[PROFILE_ENTRIES_MAX];
    size_t n;
};

// `where` is the name of a built-in profile, or the path of a file: what has a slash or ends in
// ".profile". Messages are one line that names file and line.
int profile_open(struct profile *profile, const char *where, struct inst_msg *msg);
int profile_parse(struct profile *profile, const char *place, const char *text, size_t bytes,
                  struct inst_msg *msg);
// Names of the built-in ones in alphabetical order, NULL behind the last.
const char *profile_builtin_name(size_t index);

struct profile_field {
    const char *key;
    enum profile_kind kind;
    void *out;
    double least, most; // in the unit that is stored; most 0: no bound
    bool optional;      // *out stays as it is where the key is missing
};

bool profile_has(const struct profile *profile, const char *section);
// All keys of a section: what the table does not know, and what it needs and does not find, is
// INST_EINVAL. A profile without the section is INST_ENOENT.
int profile_read(const struct profile *profile, const char *section,
                 const struct profile_field *fields, size_t n, struct inst_msg *msg);
// Points at the line of a key for a message about what it says: "FILE:LINE: key". Returns `out`.
const char *profile_at(const struct profile *profile, const char *section, const char *key,
                       char out[PROFILE_PLACE_MAX + 64]);

#endif
