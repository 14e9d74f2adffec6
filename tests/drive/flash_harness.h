// SPDX-License-Identifier: Apache-2.0
// Helpers of the flash tests: geometry, buffers, running a list of operations to its end.
#ifndef INST_TESTS_DRIVE_FLASH_HARNESS_H
#define INST_TESTS_DRIVE_FLASH_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/clock.h"
#include "drive/flash/flash.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

// One way to get a flash of a given geometry.
struct flash_kind {
    const char *name;
    const char *directory; // NULL = RAM or null
    bool no_uring, no_direct;
    uint64_t rate;
    bool null, wrapped;
    const char *path; // must occur in flash->path
    bool nand;        // emulated NAND, over RAM or over a file in `directory`
};

struct flash *kind_open(const struct flash_kind *kind, const struct flash_geometry *geometry);
const char *work_directory(void); // on a disk; exists

uint64_t random_next(uint64_t *state);

// Memory of whole pages for operations; aligned, freed with free().
void *pages_new(uint64_t bytes);
void page_fill(void *page, uint32_t bytes, uint64_t seed);
bool page_is(const void *page, uint32_t bytes, uint64_t seed);

// Links the n operations into one list, submits it and polls until all are back. Fails the test
// when that takes over 20 s or something else comes back.
void run_all(struct flash *flash, struct flash_io *ios, size_t n);
int run_one(struct flash *flash, enum flash_op op, uint64_t block, uint32_t page, uint32_t pages,
            void *data);

#endif
