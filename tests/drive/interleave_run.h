// SPDX-License-Identifier: Apache-2.0
// What the parts of the harness share: interleave_harness.c (a run from its shape to its end),
// interleave_draw.c (the commands) and interleave_judge.c (what their completions must be).
#ifndef INST_TESTS_INTERLEAVE_RUN_H
#define INST_TESTS_INTERLEAVE_RUN_H

#include "interleave_harness.h"
#include "interleave_model.h"

enum {
    RUN_ITEMS = 4,
    RUN_FLIGHTS = 160, // more than the drive's queue takes
    RUN_TICKETS = 80,  // more than the drive has
    DRIVE_TICKETS = 64,
    Q_NAMES = 64, // query vectors of one ATTEND
};

// Sets of statuses.
#define BIT(status) (1u << -(status))
#define OK          1u

// One item of a READ or ATTEND, as it must be answered.
struct expected {
    uint32_t allowed; // statuses, whatever the surroundings allow beside
    uint32_t *who;    // [kv_heads][end - first], NULL: nothing to compare
    uint32_t first, end;
    uint32_t seq, life, cuts; // an append that is uncertain until its status is known
    bool appends;
};

enum ticket_state {
    TICKET_FREE,
    TICKET_AWAITED, // a COLLECT waits for it, nothing was sent
    TICKET_SENT,    // its READ or ATTEND has not completed
    TICKET_OPEN,    // it has
};

struct ticket {
    enum ticket_state state;
    uint32_t number;
    uint8_t opcode;
    bool collecting;  // a COLLECT is on its way,
    bool patient;     // one without a timeout
    bool cancellable; // READ: something of it was reclaimed
    uint32_t space, layer, count;
    struct table_header header;
    struct table_item items[RUN_ITEMS];
    struct expected expected[RUN_ITEMS];
    uint64_t bad_reads; // when it was sent
    uint64_t q_name, bytes;
};

// A command on its way.
struct flight {
    bool used, queued; // queued: completes in order
    struct command command;
    struct table_header header;
    struct table_item items[RUN_ITEMS];
    uint32_t who[RUN_ITEMS];
    struct port_buffer buffer;
    struct space_config config; // CONFIG
    int refusal;                // wrong on purpose: the status, 1: any
    uint64_t order, bad_reads, sync_faults, deadline_ns;
    struct ticket *ticket;
    struct ticket *blocked; // nobody collects this one meanwhile
};

// What a sequence will be once all that is on its way has its effect, as far as one can tell.
struct outlook {
    bool there;
    uint32_t epoch, last_epoch, on_their_way;
    uint32_t tokens[MODEL_LAYERS][MODEL_HEADS];
};

struct run {
    struct chance chance;
    struct port port;
    struct port_options shape;
    struct chaos_plan plan;
    const struct chaos_counters *chaos;
    struct interleave_counts *counts;
    struct inst_msg *msg;
    FILE *trace;
    bool scarce_memory, scarce_flash, faults;
    int last_status; // of the command that completed last
    uint8_t last_opcode;
    struct ticket *last_ticket;
    bool last_refused;   // it, or all items of it, for a reason that is not the flash's
    uint64_t empty_dram; // used before any space was there
    bool failed;         // something is wrong
    bool over;           // a known fault made the rest worthless
    uint32_t n_spaces, depth, commands;
    struct model_space spaces[MODEL_SPACES];
    struct outlook outlook[MODEL_SPACES][MODEL_SEQUENCES];
    struct flight flights[RUN_FLIGHTS];
    struct ticket tickets[RUN_TICKETS];
    uint32_t n_flights, n_collects; // on their way; of these, COLLECTs
    uint64_t order, expected_order;
    uint32_t writers; // next one
    uint32_t numbers; // of tickets, next one
    uint64_t q_names;
    struct shadow { // a drive that does one thing at a time
        struct port port;
        bool open;
    } shadow;
};

// Says what is wrong, once; returns false.
bool wrong(struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tell(struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tell_command(struct run *run, const char *what, const struct flight *flight, int status);
void forgive(struct run *run, enum fault fault);

// interleave_draw.c
void draw_shape(struct run *run);
void draw_config(struct run *run, struct space_config *config);
// Sends one command, drawn; false: something is wrong.
bool draw_command(struct run *run);
bool send_config(struct run *run, uint32_t space, const struct space_config *config);
bool send_simple(struct run *run, uint8_t opcode);
bool send_read(struct run *run, uint32_t space, uint32_t seq, uint32_t layer, uint32_t n);
bool send_attend(struct run *run, uint32_t space, uint32_t seq, uint32_t layer, uint32_t pos);
bool send_reclaim_all(struct run *run, uint32_t space, uint32_t seq, uint32_t count);
bool send_collect(struct run *run, struct ticket *ticket, uint32_t timeout_ms, size_t bytes);
// A READ or ATTEND for a COLLECT that waits; nothing of it need succeed.
bool send_remove_space(struct run *run, uint32_t space);
bool send_for_collect(struct run *run, struct ticket *ticket);
void outlook_settle(struct run *run, const struct flight *flight);

// interleave_judge.c
bool judge(struct run *run, const struct completion *done);
void ticket_forget(struct ticket *ticket);

// interleave_shadow.c: the same item on a drive that does one thing at a time: equal bits.
bool shadow_check(struct run *run, const struct ticket *ticket, uint32_t item, const float *out,
                  const float *lse, const float *captured);
void shadow_close(struct run *run);

// interleave_harness.c: does what the flash lets the drive do now.
bool run_step(struct run *run);

#endif
