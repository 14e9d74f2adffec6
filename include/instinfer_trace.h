// SPDX-License-Identifier: Apache-2.0
// What an engine spends its time on: every stage of a step, every wait for a drive and every
// command, each told once it has ended.
#ifndef INSTINFER_TRACE_H
#define INSTINFER_TRACE_H

#include <stdint.h>

enum inst_trace_kind {
    INST_TRACE_STAGE,   // work of the host; stages follow each other
    INST_TRACE_WAIT,    // for the drive, inside of a stage
    INST_TRACE_COMMAND, // from its submission to its completion; several overlap
};

#define INST_TRACE_NO_LAYER UINT32_MAX

struct inst_trace_event {
    enum inst_trace_kind kind;
    const char *name;          // "qkv", "ATTEND"; a constant
    uint32_t layer;            // or INST_TRACE_NO_LAYER
    uint32_t slot;             // of two commands under way at a time, different ones
    uint64_t count;            // rows of a stage, bytes of a command's data
    uint64_t start_ns, end_ns; // CLOCK_MONOTONIC
};

// On the thread that called the engine, in the order in which they end.
typedef void inst_trace_fn(void *user, const struct inst_trace_event *event);

// What the drives of an engine do to their flash.
enum inst_flash_op { INST_FLASH_READ, INST_FLASH_PROGRAM, INST_FLASH_ERASE, INST_FLASH_SYNC };

struct inst_flash_event {
    uint32_t drive; // in the order of inst_options.kv
    enum inst_flash_op op;
    uint64_t block; // SYNC: unused, as all below
    uint32_t page, pages;
    uint64_t offset, bytes; // as if blocks lay one after another; ERASE: of the block
    uint64_t time_ns;       // by the drive's clock, of an emulated one in its own time
};

// On the thread that called the engine, when the drive hands the operation over.
typedef void inst_flash_trace_fn(void *user, const struct inst_flash_event *event);

// What sparf or pages reads of one KV head of a session's sequence in one layer and step.
struct inst_selection_event {
    uint32_t drive;     // in the order of inst_options.kv
    const char *method; // "sparf" or "pages"
    const char *kv_type;
    // As the drive lays KV out; part_tokens: consecutive tokens whose K is had together.
    uint32_t page_bytes, kv_heads, head_dim, group_tokens, part_tokens, page_channels;
    uint32_t layer, sequence, head; // head: of those on this drive
    uint64_t tokens, flash_tokens;  // attended; of these, the first so many in rows on flash
    uint64_t ranked_tokens;         // sparf: the first so many are ranked by channel rows
    const uint32_t *channels;       // sparf: ranked by, in ascending order
    uint32_t n_channels;
    const uint64_t *chosen; // a bit for each token: its K and V are read
};

// On the thread that called the engine, before they are read. All is gone when it returns.
typedef void inst_selection_trace_fn(void *user, const struct inst_selection_event *event);

#endif
