// SPDX-License-Identifier: Apache-2.0
// A drive with a KV cache of stated locality (clusters.h), filled by WRITE as prefill does, and
// decode steps on it without a model: what is measured is the drive alone.
#ifndef INST_BENCH_ATTEND_H
#define INST_BENCH_ATTEND_H

#include "base/pool.h"
#include "bench/clusters.h"
#include "drive/drive.h"
#include "drive/engine_model.h"
#include "link/link.h"

struct attend_options {
    const char *directory; // NULL: RAM with the geometry of NAND below
    const char *nand;      // NULL, or emulated NAND: PROFILE[:SIZE][,KEY=VALUE]...
    uint32_t q_heads, kv_heads, head_dim, layers, sequences;
    uint64_t context; // tokens written; `room` more can be appended
    uint64_t room;
    uint32_t method, page_channels;   // of the space
    uint32_t kv_type;                 // enum kv_type
    uint32_t piece, keys, look, bits; // of the index of pages; 0: the drive's choice
    bool index_flash;                 // it lies on flash
    uint32_t heads_together;          // 0: 1
    uint32_t group;                   // 0: NAND: K of a group fills a page; else the drive's choice
    uint32_t page_bytes, pages_per_block, dies; // NAND
    uint64_t dram;                              // 0: as much as keeps the device busy
    uint64_t dram_limit;                        // then no more than this
    uint64_t row_cache;                         // bytes of it; 0: none
    uint64_t request_cost;                      // of the flash; 0: measured on a disk, none in RAM
    uint64_t memory; // that the flash in RAM and the texts may take together; 0: no limit
    unsigned threads;
    struct clusters_options clusters;
};

struct attend_clock;

struct attend_bench {
    struct attend_options o;
    struct attend_clock *clock; // the pool's time, NULL where a model has its own
    struct pool *pool;
    struct flash *flash;
    struct flash_nand_options *nand;
    struct emulated_units units; // of its profile
    struct engine *engine;       // a model, or the clock's
    struct drive *drive;
    struct link *link;
    struct clusters *clusters;
    struct flash_geometry geometry;
    uint32_t group, page_channels; // in use
    uint64_t dram;
    uint64_t tokens; // of every sequence
    uint32_t ticket;
    struct attend_layout layout;
    unsigned char *table, *in, *out;
    double fill_seconds;
};

// Opens, fills and flushes. On failure everything is closed again.
int attend_bench_open(struct attend_bench **out, const struct attend_options *options,
                      struct inst_msg *msg);
void attend_bench_close(struct attend_bench *bench);

struct attend_step {
    struct table_header header; // method and knobs; the rest is filled in
    bool append;                // the step adds a token to every sequence
};
// One decode step: ATTEND and COLLECT of every layer. *seconds: their time, without making up
// q, k and v; on emulated NAND in virtual time that of the model. captured (or NULL):
// [layers][sequences][q_heads].
int attend_bench_step(struct attend_bench *bench, const struct attend_step *step, double *seconds,
                      float *captured, struct inst_msg *msg);

// Time so far in which the drive chose what to read, and nothing else; 0 where a model keeps it.
double attend_bench_choosing(const struct attend_bench *bench);
int attend_bench_stats(struct attend_bench *bench, struct drive_stats *stats, struct inst_msg *msg);
int attend_bench_flush(struct attend_bench *bench, struct inst_msg *msg);

#endif
