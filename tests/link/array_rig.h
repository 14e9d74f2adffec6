// SPDX-License-Identifier: Apache-2.0
// A drive array beside one drive that holds everything: both get the same commands, and must answer
// the same bits. Between the array and its drives are gates, which refuse, hold back and lose.
#ifndef INST_TESTS_LINK_ARRAY_RIG_H
#define INST_TESTS_LINK_ARRAY_RIG_H

#include "drive/drive.h"
#include "link/link.h"

enum { DRIVES_MOST = 8, RIG_SPACE = 3 };

// Makes one of the drives misbehave.
struct gate_plan {
    uint8_t opcode;  // commands of this kind ...
    uint64_t after;  // ... pass so often first,
    uint64_t refuse; // ... are then answered so often with `code` and do not reach the drive,
    int code;
    uint64_t full; // so many submissions of anything find the queue full
    bool hold;     // completions do not come out
    bool dead;     // everything is answered with INST_EIO
};

struct rig_options {
    struct space_config config;
    uint32_t drives;
    uint64_t dram_bytes; // of each of the array's drives; 0: plenty
    bool alone;          // no other drive to compare with
    uint64_t limit_ns;   // as in link_array_options
};

struct rig {
    struct rig_options o;
    struct space_config config;
    struct budget budget;
    struct pool *pool;
    struct unit {
        struct flash *flash;
        struct drive *drive;
        struct link *link;
    } unit[DRIVES_MOST + 1]; // the last one: all by itself
    struct gate *gate[DRIVES_MOST];
    struct link *array, *one;
    uint16_t cid;
    uint32_t ticket;
    struct inst_msg msg; // of the array's latest answer
};

void rig_open(struct rig *rig, const struct rig_options *options);
void rig_close(struct rig *rig); // all is given back
void rig_gate(struct rig *rig, uint32_t drive, const struct gate_plan *plan);
uint64_t rig_passed(const struct rig *rig, uint32_t drive, uint8_t opcode); // that reached it

// To the array and to the one drive, which must agree about status and result.
int rig_both(struct rig *rig, struct command command, const void *table, void *data);
// To the array only.
int rig_array(struct rig *rig, struct command command, const void *table, void *data);
int rig_link(struct rig *rig, struct link *link, struct command command, const void *table,
             void *data);

// Tokens [pos, pos + n) of a layer, the same values whenever; heads [first, first + count).
int rig_write(struct rig *rig, struct link *link, uint32_t seq, uint32_t layer, uint64_t pos,
              uint64_t n, uint32_t first, uint32_t count);
int rig_write_all(struct rig *rig, uint32_t seq, uint64_t pos, uint64_t n); // to both
// READ from both: the same bytes, and those that were written.
void rig_expect_tokens(struct rig *rig, uint32_t seq, uint32_t layer, uint64_t pos, uint64_t n);

struct rig_query {
    uint32_t seq;
    uint64_t pos;
    bool append;
};
// The table and the data of an ATTEND; returns its command. *out_bytes: of its COLLECT.
struct command rig_attend_command(struct rig *rig, uint32_t layer, const struct rig_query *query,
                                  uint32_t count, void *table, void *data, size_t *out_bytes);
// ATTEND and COLLECT from both: the same bits. Returns the first failed item's status.
int rig_expect_attention(struct rig *rig, uint32_t layer, const struct rig_query *query,
                         uint32_t count);
int rig_reclaim(struct rig *rig, uint32_t seq, uint64_t pos);
int rig_fork(struct rig *rig, uint32_t parent, uint32_t child, uint64_t pos);
void rig_stats(struct rig *rig, struct link *link, struct drive_stats *stats);
// Of one of the array's drives, past the array.
void rig_drive_stats(struct rig *rig, uint32_t drive, struct drive_stats *stats);

uint32_t rig_random(uint64_t *state, uint32_t below);

#endif
