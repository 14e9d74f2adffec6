// SPDX-License-Identifier: Apache-2.0
// How a method of attention plugs in. The work on one item and one bundle of KV heads is a *unit*.
// walk.c runs all units of a space: it asks the method which piece a unit wants next, acquires it,
// has it checked and computed by the engine, hands folded pieces back in ascending order, and asks
// what comes next when a phase has ended. A method does no I/O of its own, and neither control/ nor
// ftl/ knows any.
//
// A unit is in one of two kinds of phase: it reads (pieces), or it thinks (arithmetic of the whole
// unit). Functions marked "worker" run in the engine, for some KV heads of the unit each.
#ifndef INST_DRIVE_ATTEND_METHOD_H
#define INST_DRIVE_ATTEND_METHOD_H

#include "drive/attend/job.h"
#include "drive/engine.h"
#include "drive/ftl/piece.h"

enum { MAX_GROUP_HEADS = 256 }; // query heads of one KV head

struct walk;
struct method_state; // the method's own, one for each space

enum unit_kind { UNIT_READS, UNIT_THINKS, UNIT_ENDED };

struct unit {
    struct unit *next; // under way, in the order of their start, or free
    struct walk *walk;
    struct job *job;
    struct method_state *state;
    void *own; // the method's, for this unit
    uint32_t item, head_first, n_heads;
    uint32_t group; // query heads per KV head
    enum unit_kind kind;
    uint32_t phase;               // the method's
    uint64_t cursor;              // the method's: what lies before has a piece
    bool wanted;                  // the method sets it: the phase has no further piece
    bool thinking;                // the engine has it
    uint32_t folding;             // computed pieces at the front of the list: the engine has them
    uint32_t waiting;             // pieces in the list
    struct piece *pieces, **last; // oldest first
};

// What a worker is asked to do: heads [head, head + heads) of a unit, counted from head_first.
struct unit_task {
    struct unit *unit;
    struct piece *piece; // NULL: the unit as a whole, or, to fold, `folding` pieces at its front
    uint32_t head, heads;
};

// What a method needs of a space that is to be made.
struct method_plan {
    uint64_t bytes;       // DRAM
    uint32_t rows, pages; // whole rows and single pages without which a piece cannot be acquired
    size_t scratch;       // of each worker
    uint32_t pieces;      // that it has under way at most
    uint32_t frames;      // that one of them holds at most
    uint32_t share;       // of what they cover, so much is read as a rule: 1 / share; 0: all
};

struct method {
    uint32_t id; // of ATTEND and CONFIG: enum attend_method, or a new number
    const char *name;
    uint32_t streams;   // derived streams that its spaces keep: bits 1 << id
    enum frame_use use; // of what it reads of K and V; want says it of each piece

    // Level 0 is the least that works, METHOD_LEVELS - 1 as much as is of use.
    int (*plan)(struct method_plan *plan, const struct flash_geometry *geometry,
                const struct space_config *config, const struct stream *streams, unsigned level,
                struct inst_msg *msg);
    int (*open)(struct method_state **out, struct walk *walk, unsigned level, struct inst_msg *msg);
    void (*close)(struct method_state *state);
    // Refuses an ATTEND that the space was not made for, and fills in what its header leaves to
    // defaults. NULL: takes any.
    int (*check)(struct method_state *state, struct table_header *header,
                 const struct table_item *item, struct inst_msg *msg);
    // Fails one item, the others being unharmed. NULL: takes any.
    int (*check_item)(const struct method_state *state, const struct table_item *item,
                      struct inst_msg *msg);
    // KV heads of a unit. NULL: all.
    uint32_t (*bundle)(const struct method_state *state);

    bool (*begin)(struct unit *unit); // sets the first phase; false: not now
    // The next piece of a reading unit, its pages marked; NULL: none (unit->wanted), or not now.
    struct piece *(*want)(struct unit *unit);
    // A piece of a derived stream cannot be had: its tokens are asked for again, without it. NULL:
    // the method has no such pieces.
    void (*redo)(struct unit *unit, const struct piece *piece);
    void (*compute)(const struct unit_task *task, uint8_t *scratch); // worker
    void (*computed)(struct unit *unit, const struct piece *piece);  // before its pages go back
    bool (*folds)(const struct piece *piece);                        // in ascending order, later
    void (*fold)(const struct unit_task *task);                      // worker
    void (*think)(const struct unit_task *task, uint8_t *scratch);   // worker
    // Adds what computing a piece, or thinking (piece NULL), takes of arithmetic, as the units of
    // an engine have it (drive/engine_model.h). NULL: nothing.
    void (*work)(const struct unit *unit, const struct piece *piece, struct engine_work *work);
    void (*advance)(struct unit *unit); // a phase has ended: sets the next one
    void (*end)(struct unit *unit);     // has ended or failed: gives `own` back
    void (*stats)(const struct method_state *state, struct drive_stats *stats);
};

enum { METHOD_LEVELS = 7 };

extern const struct method method_dense, method_sparf, method_pages;
extern const struct method method_copy; // READ

#endif
