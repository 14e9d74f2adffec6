// SPDX-License-Identifier: Apache-2.0
// What a test leaves out here, it says: ./check repeats every line that begins with "not tested: "
// under its counts. What only this machine or its user can give (an instruction set, a mount, a
// file that may not lie in the tree) may be left out; what ./setup --check or the tree brings is
// an error where CI is in the environment, as it is under ./check. tests/needs.py is the same.
#ifndef INST_TESTS_NEEDS_H
#define INST_TESTS_NEEDS_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define not_tested(...)                                                                            \
    do {                                                                                           \
        printf("\nnot tested: " __VA_ARGS__);                                                      \
        putchar('\n');                                                                             \
        fflush(stdout);                                                                            \
    } while (0)

// Of cmocka: ends the test.
#define leave_out(...)                                                                             \
    do {                                                                                           \
        not_tested(__VA_ARGS__);                                                                   \
        skip();                                                                                    \
    } while (0)

// A model or vocabulary of the tree, by its name in the goldens; or one that others keep, where
// INST_MODELS or ../shared/models has it. False, and said, where it is not.
static inline bool model_path(char *path, size_t bytes, const char *name)
{
    const char *others = getenv("INST_MODELS");
    const char *const folders[] = {INST_SOURCE_DIR "/models", INST_SOURCE_DIR "/tests/data",
                                   others ? others : INST_SOURCE_DIR "/../shared/models"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, bytes, "%s/%s", folders[i], name);
        if (!access(path, R_OK))
            return true;
    }
    not_tested("%s, whose licence keeps it out of the tree (tests/data/vocab/README.md)", name);
    return false;
}

#endif
