// SPDX-License-Identifier: Apache-2.0
// Which pages a method reads, where no recorded selection is at hand: a statistical model with one
// number for locality. Chosen tokens come in runs of neighbours: whether a token is chosen depends
// on the one before it alone, a share `tokens` of all is chosen, and a run is `run` tokens long on
// average (1 / (1 - tokens): no locality). Chosen channels are any. So the share of pages that hold
// something chosen, phi, comes out; it is never put in.
#ifndef INST_SIM_SELECT_H
#define INST_SIM_SELECT_H

#include <stdbool.h>
#include <stdint.h>

struct selections;
struct selection {
    double channels;                   // share of the channels of K that rank
    double tokens;                     // share of the tokens that are attended to
    double run;                        // mean tokens of a run
    uint32_t page_channels;            // channels of K that share a page
    const struct selections *recorded; // instead of shares and run (selections.h), NULL: none
    bool tail_in_dram;                 // K that fills no channel page yet is ranked without a read
};

struct draw { // a seeded sequence of numbers, equal everywhere
    uint64_t state;
};
double draw_unit(struct draw *draw); // [0, 1)

// The expected share of pages of `page_tokens` tokens that hold a chosen one.
double selection_page_share(const struct selection *s, double page_tokens);
// The run length for which that share comes out; what measurements are turned into.
double selection_run_for(double tokens, double page_tokens, double share);
// The expected share of channel pages that hold a chosen channel.
double selection_channel_share(const struct selection *s, uint32_t head_dim);

// One selection: calls back for each of `pages` pages of `page_tokens` tokens that holds a chosen
// token, in ascending order.
typedef void select_fn(void *arg, uint32_t page);
void selection_draw_pages(const struct selection *s, struct draw *draw, uint32_t pages,
                          uint32_t page_tokens, select_fn *fn, void *arg);
// The same for the channel pages of one covered range.
void selection_draw_channels(const struct selection *s, struct draw *draw, uint32_t head_dim,
                             select_fn *fn, void *arg);

#endif
