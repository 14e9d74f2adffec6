// SPDX-License-Identifier: Apache-2.0
// A drive over some flash, driven by plain calls, and an independent model of what it must answer:
// K and V kept as arrays, attention computed in double.
#ifndef INST_TESTS_DRIVE_HARNESS_H
#define INST_TESTS_DRIVE_HARNESS_H

#include "drive/drive.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <cmocka.h>

struct rig {
    struct pool *pool;
    struct flash *flash;
    struct drive *drive;
    uint64_t now_ns;
    uint32_t next_ticket;
    struct inst_msg msg;
    char text[COMPLETION_TEXT_BYTES]; // of the latest completion
    struct space_config config;
    uint32_t q_heads;
    uint64_t seed;
    float softcap;   // of every ATTEND, 0 = none
    uint32_t method; // of every ATTEND
    float ratio;     // the same, of pages
    uint32_t round;  // enum kv_type: K and V are rounded so before they are sent
};

struct rig_options {
    struct space_config config; // of space 1
    uint32_t q_heads, threads;
    uint64_t dram_bytes; // 0: plenty
    uint32_t page_bytes, pages_per_block, dies;
    uint64_t blocks;
    uint64_t ram_rate;                     // 0: views
    uint32_t request_bytes;                // of the flash: gaps up to this size are read
    const char *directory;                 // file store there instead of RAM
    const struct flash_nand_options *nand; // emulated NAND of its geometry instead
    const char *kernels;
    const struct flash_fault_plan *faults;
    struct flash *wrap, **wrap_inner; // a wrapper of the test's own, and where what it wraps goes
    struct engine *engine;            // NULL: the pool
    const struct method *const *methods; // of the test's own
    bool no_read_ahead;
    uint32_t round;           // see struct rig
    bool row_cache;           // off: what is read comes from flash
    uint64_t row_cache_bytes; // 0: as many as fit
};

// K or V of a token as it is sent, or as it is stored.
void rig_row(const struct rig *rig, uint32_t content, uint32_t layer, uint32_t head, uint64_t token,
             bool v, bool stored, uint16_t *row);
// Of the flash that rig_open makes.
struct flash_geometry rig_geometry(const struct rig_options *options);
void rig_open(struct rig *rig, const struct rig_options *options);
void rig_close(struct rig *rig);
// One command to its completion; returns its status.
int rig_call(struct rig *rig, const struct command *command, const void *table, void *data,
             uint64_t *result);
// The same with a table that is as long as the caller says.
int rig_call_bytes(struct rig *rig, const struct command *command, const void *table,
                   size_t table_bytes, void *data, uint64_t *result);
// After a FLUSH.
void rig_stats(struct rig *rig, struct drive_stats *stats);

// The reproducible fp16 value of one element.
uint16_t rig_value(const struct rig *rig, uint32_t content, uint32_t layer, uint32_t head,
                   uint64_t token, uint32_t d, bool v);
// Writes tokens [pos, pos + n) of heads [first, first + count); `content` names the values.
int rig_write(struct rig *rig, uint32_t seq, uint32_t content, uint32_t layer, uint64_t pos,
              uint64_t n, uint32_t first, uint32_t count);
int rig_write_all(struct rig *rig, uint32_t seq, uint32_t content, uint64_t pos, uint64_t n);
int rig_read(struct rig *rig, uint32_t seq, uint32_t layer, uint64_t pos, uint64_t n,
             uint32_t first, uint32_t count, uint16_t *out);
// Fails the test when READ does not give back the values of `content`.
void rig_expect_content(struct rig *rig, uint32_t seq, uint32_t content, uint32_t layer,
                        uint64_t pos, uint64_t n);

struct rig_query {
    uint32_t seq, epoch, content;
    uint64_t pos, window;
    bool append;
    int status; // out
};
// ATTEND and COLLECT of a batch; out: [count][q_heads][head_dim], lse: [count][q_heads].
int rig_attend(struct rig *rig, uint32_t layer, struct rig_query *queries, uint32_t count,
               float *out, float *lse);
void rig_query_vector(const struct rig *rig, const struct rig_query *query, uint32_t layer,
                      uint32_t q_head, float *q);
// Compares with attention in double; fails the test beyond the tolerance.
void rig_expect_attention(struct rig *rig, uint32_t layer, const struct rig_query *query,
                          const float *out, const float *lse);
int rig_reclaim(struct rig *rig, uint32_t seq, uint64_t pos, uint64_t n, uint32_t layer_first,
                uint32_t layer_count);
int rig_fork(struct rig *rig, uint32_t parent, uint32_t child, uint64_t pos);

#endif
