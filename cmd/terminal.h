// SPDX-License-Identifier: Apache-2.0
// What a person sees on stderr: the first line, the prefill bar, the closing summary.
#ifndef INST_CMD_TERMINAL_H
#define INST_CMD_TERMINAL_H

#include "instinfer_stats.h"

struct terminal {
    bool lines;      // first line and summary
    bool bar;        // stderr is a terminal
    bool text_shown; // stdout is one, too
    bool bar_shown;
    double bar_start, bar_last; // seconds
    double opened;
};

void terminal_open(struct terminal *terminal, bool verbose);
void terminal_first_line(const struct terminal *terminal, const struct inst_model_info *info);
void terminal_progress(struct terminal *terminal, uint64_t done, uint64_t total);
void terminal_end_progress(struct terminal *terminal);
// While a text is generated that is not shown on the terminal; what audits say so far.
void terminal_generated(struct terminal *terminal, inst_engine *e, uint64_t tokens);
// Of a batch: lines done in all, of which `now` in this run, and tokens generated in it.
void terminal_batch(struct terminal *terminal, inst_engine *e, uint64_t done, uint64_t total,
                    uint64_t now, uint64_t tokens);
void terminal_batch_summary(const struct terminal *terminal, inst_engine *e, uint64_t now,
                            uint64_t tokens);

struct run_result {
    struct inst_stats stats;
    struct inst_drive_stats drives[64]; // [n_drives]
    uint32_t n_drives;
    uint64_t prompt_tokens, generated_tokens, peak_memory;
    uint64_t turns; // of a chat
    bool batch;     // of many texts: it has lines, answered in this run, and no turns
    uint64_t lines, failed_lines;
    uint32_t seed;
    const char *stop_reason; // "end", "length", "context", "stop", "interrupt", "error", "none"
};
void terminal_summary(const struct terminal *terminal, const struct run_result *result);

double rate(double amount, double seconds); // 0 when there was no time

// Peak of RssAnon + RssShmem of this process, as far as it was looked at. NULL fields are fine.
struct meter {
    uint64_t peak;
    double last; // seconds
};
// Looks, but not more often than every few milliseconds unless `now`.
void meter_sample(struct meter *meter, bool now);

#endif
