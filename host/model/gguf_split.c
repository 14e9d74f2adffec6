// SPDX-License-Identifier: Apache-2.0
// Models in several files, NAME-00001-of-0000N.gguf and so on. The first has all keys; each part
// has tensors, its number (split.no, from 0), and how many parts (split.count) and tensors
// (split.tensors.count) there are in all. The tables of all parts become one, in the reader of the
// first; each part keeps its own map.
#include "host/model/gguf_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char key_no[] = "split.no", key_count[] = "split.count",
                  key_tensors[] = "split.tensors.count";

int gguf_split_count(const struct gguf *g, uint64_t *count, struct inst_msg *msg)
{
    *count = 1;
    int rc = gguf_get_u64(g, key_count, GGUF_OPTIONAL, 0, UINT16_MAX, count, msg);
    if (*count == 0)
        *count = 1;
    return rc;
}

int gguf_split_check(const struct gguf *g, uint64_t no, uint64_t count, uint64_t *tensors,
                     struct inst_msg *msg)
{
    uint64_t its_count, its_no = 0, its_tensors = *tensors;
    int rc = gguf_split_count(g, &its_count, msg);
    if (rc)
        return rc;
    if (its_count != count)
        return inst_fail(msg, INST_EFORMAT,
                         "%s: part %" PRIu64 " of %" PRIu64 " says that there are %" PRIu64
                         " parts",
                         gguf_name(g), no + 1, count, its_count);
    rc = gguf_get_u64(g, key_no, GGUF_REQUIRED, 0, UINT16_MAX, &its_no, msg);
    if (!rc && its_no != no)
        return gguf_fail_key(g, gguf_find(g, key_no), INST_EFORMAT, msg,
                             no ? "part %" PRIu64 " where part %" PRIu64 " of %" PRIu64 " belongs"
                                : "part %" PRIu64 ": open part %" PRIu64 " of %" PRIu64,
                             its_no + 1, no + 1, count);
    if (!rc)
        rc = gguf_get_u64(g, key_tensors, GGUF_OPTIONAL, 0, UINT32_MAX, &its_tensors, msg);
    if (!rc && *tensors != UINT64_MAX && its_tensors != *tensors)
        return gguf_fail_key(g, gguf_find(g, key_tensors), INST_EFORMAT, msg,
                             "%" PRIu64 " tensors in all, but part 1 says %" PRIu64, its_tensors,
                             *tensors);
    *tensors = its_tensors;
    return rc;
}

// Gives the tensors of all parts to the first.
static int join_tensors(struct gguf *first, struct inst_msg *msg)
{
    uint64_t total = first->n_tensors, row = 0;
    for (uint64_t i = 0; i < first->n_parts; i++)
        total += first->part[i]->n_tensors; // each below 2^30
    if (total >= UINT32_MAX / 4)
        return inst_fail(msg, INST_EFORMAT, "%s: %" PRIu64 " tensors in all its parts", first->name,
                         total);
    struct gguf_tensor *tensors =
        budget_alloc(first->budget, total ? total : 1, sizeof *tensors, "the GGUF tensors", msg);
    if (!tensors)
        return INST_ENOMEM;
    for (uint64_t i = 0; i <= first->n_parts; i++) {
        struct gguf *g = i ? first->part[i - 1] : first;
        if (g->n_tensors)
            memcpy(tensors + row, g->tensors, g->n_tensors * sizeof *tensors);
        row += g->n_tensors;
        gguf_free_tensors(g);
    }
    first->tensors = tensors;
    first->n_tensors = total;
    int rc = gguf_tensor_index_new(first, total, msg);
    for (uint64_t i = 0; i < total && !rc; i++)
        if (!gguf_tensor_index_add(first, i))
            rc = gguf_fail_tensor(first, &tensors[i], INST_EFORMAT, msg,
                                  "the tensor is there twice");
    return rc;
}

int gguf_join(struct gguf *first, struct inst_msg *msg)
{
    uint64_t count = first->n_parts + 1, said = UINT64_MAX;
    int rc = gguf_split_check(first, 0, count, &said, msg);
    for (uint64_t i = 0; i < first->n_parts && !rc; i++)
        rc = gguf_split_check(first->part[i], i + 1, count, &said, msg);
    if (!rc)
        rc = join_tensors(first, msg);
    if (!rc && said != UINT64_MAX && first->n_tensors != said)
        rc = gguf_fail_key(first, gguf_find(first, key_tensors), INST_EFORMAT, msg,
                           "%" PRIu64 " tensors in all, but its %" PRIu64 " parts have %" PRIu64,
                           said, count, first->n_tensors);
    return rc;
}

bool gguf_part_path(const char *path, uint64_t i, char *out, size_t room)
{
    // NAME-00001-of-00003.gguf; five digits each.
    static const char form[] = "-00000-of-00000.gguf";
    size_t bytes = strlen(path), tail = sizeof form - 1;
    if (bytes <= tail)
        return false;
    const char *p = path + bytes - tail;
    for (size_t at = 0; at < tail; at++)
        if (form[at] == '0' ? p[at] < '0' || p[at] > '9' : p[at] != form[at])
            return false;
    uint64_t count = strtoull(p + 10, NULL, 10);
    int n = i < count ? snprintf(out, room, "%.*s-%05" PRIu64 "-of-%05" PRIu64 ".gguf",
                                 (int)(bytes - tail), path, i + 1, count)
                      : -1;
    return n > 0 && (size_t)n < room;
}
