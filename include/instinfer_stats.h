// SPDX-License-Identifier: Apache-2.0
// What an engine has counted. Functions here get the size of the struct that the caller was
// compiled with: a library that knows more fills in what there is room for, one that knows less
// leaves the rest zero.
#ifndef INSTINFER_STATS_H
#define INSTINFER_STATS_H

#include "instinfer.h"

#ifdef __cplusplus
extern "C" {
#endif

// Since the engine was opened, one per row: X(type, name, what it means)
#define INST_STATS_MAP(X)                                                                          \
    X(uint64_t, prefill_tokens, "tokens computed by prefill")                                      \
    X(uint64_t, decode_tokens, "tokens computed by decode steps")                                  \
    X(uint64_t, shared_tokens, "tokens not computed because another sequence held them")           \
    X(double, prefill_seconds, "wall time of prefill")                                             \
    X(double, decode_seconds, "wall time of decode")                                               \
    X(double, attention_seconds, "part of decode spent waiting for the drive")                     \
    X(uint64_t, flash_read_bytes, "bytes read from flash")                                         \
    X(uint64_t, flash_program_bytes, "bytes programmed, summaries and padding included")           \
    X(uint64_t, decode_flash_read_bytes, "part of flash_read_bytes read during decode")            \
    X(uint64_t, cache_hit_bytes, "found in the row cache instead")                                 \
    X(uint64_t, cached_bytes, "in the row cache now")                                              \
    X(uint64_t, bridged_bytes, "read as gaps that cost less than a request")                       \
    X(uint64_t, read_ahead_rows, "rows read before they were asked for")                           \
    X(uint64_t, read_ahead_hits, "those of them that were asked for")                              \
    X(uint64_t, stream_bytes, "K and V bytes that the drive accepted for flash")                   \
    X(double, waf, "write amplification: flash_program_bytes / stream_bytes")                      \
    X(double, space_amplification, "flash allocated / flash live")                                 \
    X(uint64_t, attended_tokens, "tokens attended by decode, summed over layers and sessions")     \
    X(uint64_t, attended_tokens_from_flash, "those that came from flash")                          \
    X(uint64_t, budget_peak_bytes, "most of the memory budget that was in use")                    \
    X(uint64_t, lost_drives, "drives that were given up")                                          \
    X(uint64_t, recomputed_tokens, "tokens computed again because of that")                        \
    X(uint64_t, drive_dram_bytes, "DRAM that the drive states to have")                            \
    X(uint64_t, drive_dram_peak_bytes, "the most of it that was in use")                           \
    X(double, modelled_attention_seconds, "what attention_seconds would be on emulated drives")    \
    X(double, modelled_flash_seconds, "that emulated flash was busy, of the drive with the most")  \
    X(double, modelled_engine_seconds, "that its attention engine was")                            \
    X(double, modelled_link_seconds, "that its link was, both ways")

// Of what a method of attention counts on its own.
struct inst_counter {
    const char *name, *text; // what it means
    double value;
};

struct inst_stats {
#define INST_STATS_FIELD(type, name, text) type name;
    INST_STATS_MAP(INST_STATS_FIELD)
#undef INST_STATS_FIELD
    const struct inst_counter *method; // the engine's, until the next call; dense and host: none
    size_t n_method;
};
INST_API int inst_engine_stats_sized(inst_engine *engine, struct inst_stats *stats, size_t size,
                                     struct inst_msg *msg);
static inline int inst_engine_stats(inst_engine *engine, struct inst_stats *stats,
                                    struct inst_msg *msg)
{
    return inst_engine_stats_sized(engine, stats, sizeof *stats, msg);
}
// The method's counter of that name, 0 where there is none. Like them, until the next call.
INST_API double inst_stats_method(const struct inst_stats *stats, const char *name);

struct inst_drive_stats {
    const char *place; // in the order of inst_options.kv; the engine's
    uint64_t flash_read_bytes, flash_program_bytes, stream_bytes, cache_hit_bytes;
    // Of emulated flash ("nand:"), in its own time; else 0.
    bool emulated;
    double modelled_flash_seconds;   // that it was busy
    double modelled_channel_seconds; // that its flash channels were, summed over them
    double modelled_die_seconds;     // that its dies were, summed over them
    uint64_t read_pages, program_pages, block_erases, read_retries, suspensions, joined_pages;
    uint64_t bad_blocks, grown_bad_blocks, failed_programs, failed_erases, most_erases;
    double modelled_engine_seconds; // that its attention engine was busy
    double modelled_gemv_seconds, modelled_softmax_seconds, modelled_argtopk_seconds; // kinds of it
    double modelled_link_seconds; // that its link to the host was, both ways summed
    uint64_t failed_reads;        // of pages that were read again as often as they may, in vain
};
// Of the first n drives, as they were when inst_engine_stats was last called (the first time, if it
// never was): they add up to what that told. `size` is that of one.
INST_API int inst_engine_drives_sized(inst_engine *engine, struct inst_drive_stats *drives,
                                      size_t n, size_t size, struct inst_msg *msg);
static inline int inst_engine_drives(inst_engine *engine, struct inst_drive_stats *drives, size_t n,
                                     struct inst_msg *msg)
{
    return inst_engine_drives_sized(engine, drives, n, sizeof *drives, msg);
}

#ifdef __cplusplus
}
#endif
#endif
