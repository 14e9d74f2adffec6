// SPDX-License-Identifier: Apache-2.0
// What the references of METHOD_PAGES have in common: pages_float64.c, which weighs all keys, and
// likely_float64.c, which weighs the likeliest alone. Nobody else includes this.
#ifndef INST_TESTS_PAGES_PARTS_H
#define INST_TESTS_PAGES_PARTS_H

#include "pages_float64.h"

enum { PAGES_KEYS = 64, PAGES_DIM = 512 }; // at most

struct pages_summary {
    double key[PAGES_KEYS][PAGES_DIM]; // turned, less `middle`
    double middle[PAGES_DIM];
    double size[PAGES_KEYS]; // what channels are multiples of
    double value[PAGES_DIM];
    uint32_t count[PAGES_KEYS];
};

struct pages_query {
    double turned[PAGES_DIM], most; // the largest sum of four channels' sizes
};

double pages_dot(const double *a, const double *b, uint32_t dim);
void pages_summarise(const struct pages_problem *p, uint32_t piece, struct pages_summary *s);
// Query g of the head.
void pages_ask(const struct pages_problem *p, uint32_t g, struct pages_query *q);
// Of a rounded key, turned, of which channels are multiples of `size`, and of what was taken from
// it.
double pages_score(const struct pages_problem *p, const struct pages_query *q, const double *key,
                   double size, const double *middle);
// Scores are off by so much.
double pages_deviation(const struct pages_problem *p, const struct pages_summary *summaries,
                       uint32_t pieces, uint32_t g);
// The output of a query and what it captures of the softmax, of a->token and, unless p->no_rest, of
// the pieces that are not chosen.
void pages_attend(const struct pages_problem *p, const struct pages_summary *summaries,
                  uint32_t pieces, const bool *chosen, uint32_t query, struct pages_answer *a);

#endif
