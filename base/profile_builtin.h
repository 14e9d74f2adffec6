// SPDX-License-Identifier: Apache-2.0
// What CMakeLists.txt makes of profiles/. Private to profile.c.
#ifndef INST_BASE_PROFILE_BUILTIN_H
#define INST_BASE_PROFILE_BUILTIN_H

struct profile_builtin {
    const char *name, *text;
};
extern const struct profile_builtin profile_builtin[]; // by name; without a name behind the last

#endif
