// SPDX-License-Identifier: Apache-2.0
// Arrays that are shared by reference against plain copies: contents, references to entries, memory
// that is refused, and what a fork and an end cost.
#include "drive/ftl/map.h"
#include "base/checked.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { VALUES = 1 << 16, ARRAYS = 12, LENGTH = 5000 };

// The value stands at the end of an entry, too.
struct entry {
    uint64_t value;
    uint8_t rest[24];
};
enum { LINE = 64 }; // entries that fill cache lines begin with one

// References to each value, as the hooks tell.
struct world {
    struct budget budget;
    struct map_kind kind;
    uint32_t refs[VALUES], seen[VALUES];
    struct map map[ARRAYS];
    uint64_t model[ARRAYS][LENGTH], n[ARRAYS];
    uint64_t next, random;
};

static void share(void *arg, void *entry)
{
    ((struct world *)arg)->refs[((struct entry *)entry)->value]++;
}

static void drop(void *arg, void *entry)
{
    uint32_t *refs = &((struct world *)arg)->refs[((struct entry *)entry)->value];
    assert_true(*refs > 0);
    --*refs;
}

static void see(void *arg, void *entry)
{
    ((struct world *)arg)->seen[((struct entry *)entry)->value]++;
}

static struct world *open_world(uint32_t leaf)
{
    struct world *w = calloc(1, sizeof *w);
    budget_init(&w->budget, UINT64_MAX);
    w->random = 1;
    w->kind = (struct map_kind){.entry_bytes = sizeof(struct entry),
                                .leaf_entries = leaf,
                                .share = share,
                                .drop = drop,
                                .arg = w,
                                .budget = &w->budget};
    return w;
}

static uint64_t draw(struct world *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

static void sweep(struct world *w)
{
    uint64_t work = UINT64_MAX;
    assert_false(map_sweep(&w->kind, &work));
}

static void close_world(struct world *w)
{
    for (int a = 0; a < ARRAYS; a++)
        map_truncate(&w->kind, &w->map[a], 0);
    sweep(w);
    for (int v = 0; v < VALUES; v++)
        assert_int_equal(w->refs[v], 0);
    assert_int_equal(w->budget.used, 0);
    free(w);
}

static uint64_t *last_of(const struct world *w, void *entry)
{
    return (uint64_t *)((uint8_t *)entry + w->kind.entry_bytes) - 1;
}

static void is(const struct world *w, void *entry, uint64_t value)
{
    assert_int_equal(((struct entry *)entry)->value, value);
    assert_int_equal(*last_of(w, entry), value);
    if (w->kind.entry_bytes % LINE == 0)
        assert_int_equal((uintptr_t)entry % LINE, 0);
}

static void put(struct world *w, int a, struct entry *entry, uint64_t i)
{
    uint64_t value = ++w->next % VALUES;
    entry->value = *last_of(w, entry) = value;
    w->refs[value]++;
    w->model[a][i] = value;
}

static bool append(struct world *w, int a)
{
    struct entry *entry = map_append(&w->kind, &w->map[a], NULL);
    if (!entry)
        return false;
    is(w, entry, 0);
    put(w, a, entry, w->n[a]++);
    return true;
}

static bool edit(struct world *w, int a, uint64_t i)
{
    struct entry *entry = map_edit(&w->kind, &w->map[a], i, NULL);
    if (!entry)
        return false;
    is(w, entry, w->model[a][i]);
    drop(w, entry);
    put(w, a, entry, i);
    return true;
}

static void truncate_to(struct world *w, int a, uint64_t n)
{
    map_truncate(&w->kind, &w->map[a], n);
    w->n[a] = n;
}

static bool fork_from(struct world *w, int from, int to, uint64_t n)
{
    if (map_fork(&w->kind, &w->map[from], &w->map[to], n, NULL))
        return false;
    memcpy(w->model[to], w->model[from], n * sizeof w->model[0][0]);
    w->n[to] = n;
    return true;
}

static void check(struct world *w)
{
    memset(w->seen, 0, sizeof w->seen);
    map_walk_begin(&w->kind, see, w);
    for (int a = 0; a < ARRAYS; a++) {
        assert_int_equal(w->map[a].n, w->n[a]);
        for (uint64_t i = 0; i < w->n[a]; i++)
            is(w, map_at(&w->kind, &w->map[a], i), w->model[a][i]);
        map_walk(&w->kind, &w->map[a], see, w);
    }
    for (int v = 0; v < VALUES; v++)
        assert_int_equal(w->seen[v], w->refs[v]);
}

// One random operation; false: it was refused for want of memory.
static bool step(struct world *w)
{
    int a = (int)draw(w, ARRAYS), b = (int)draw(w, ARRAYS);
    uint64_t n = w->n[a];
    switch (draw(w, 10)) {
    case 0:
        if (a == b || w->n[b])
            return true;
        return fork_from(w, a, b, draw(w, 3) ? n : draw(w, n + 1));
    case 1:
        truncate_to(w, a, draw(w, 3) ? n - draw(w, n / 8 + 1) : draw(w, n + 1));
        return true;
    case 2:
        return !n || edit(w, a, draw(w, n));
    case 3:
        return n == LENGTH || !map_reserve(&w->kind, &w->map[a], NULL);
    default:
        for (uint64_t k = draw(w, 1 + draw(w, 200)); k && w->n[a] < LENGTH; k--)
            if (!append(w, a))
                return false;
        return true;
    }
}

static void test_like_copies(void **state)
{
    (void)state;
    for (uint32_t leaf = 1; leaf <= 16; leaf *= 2) {
        struct world *w = open_world(leaf);
        if (leaf == 2 || leaf == 8)
            w->kind.entry_bytes = 2 * LINE;
        for (int i = 0; i < 6000; i++) {
            uint64_t work = draw(w, 40);
            step(w);
            map_sweep(&w->kind, &work);
            if (i % 100 == 0)
                check(w);
        }
        close_world(w);
    }
}

// Memory that ends anywhere: the operation has no effect, and nothing is lost or kept.
static void test_refused_memory(void **state)
{
    (void)state;
    struct world *w = open_world(16);
    unsigned refused = 0;
    for (int i = 0; i < 6000; i++) {
        w->budget.limit = w->budget.used + draw(w, 3000);
        refused += !step(w);
        w->budget.limit = UINT64_MAX;
        if (draw(w, 3))
            sweep(w);
        if (i % 100 == 0)
            check(w);
    }
    assert_true(refused > 50);
    close_world(w);
}

// What was reserved can be appended without any memory.
static void test_reserve(void **state)
{
    (void)state;
    struct world *w = open_world(4);
    for (int i = 0; i < 500; i++) {
        assert_int_equal(map_reserve(&w->kind, &w->map[0], NULL), 0);
        w->budget.limit = 0;
        assert_true(append(w, 0));
        w->budget.limit = UINT64_MAX;
    }
    check(w);
    close_world(w);
}

// A million entries: forks, cuts and ends touch a handful of nodes, and the rest in slices.
static void test_cost(void **state)
{
    (void)state;
    enum { MILLION = 1000000, FEW = 16 * 1024 };
    struct world *w = open_world(16);
    struct map map[4] = {{0}};
    w->kind.share = w->kind.drop = NULL;
    for (int i = 0; i < MILLION; i++)
        assert_non_null(map_append(&w->kind, &map[0], NULL));
    uint64_t full = w->budget.used;
    assert_true(full <= map_bytes(&w->kind, MILLION));
    assert_int_equal(map_fork(&w->kind, &map[0], &map[1], MILLION, NULL), 0);
    assert_int_equal(w->budget.used, full);
    assert_int_equal(map_fork(&w->kind, &map[0], &map[2], 777777, NULL), 0);
    assert_int_equal(map_fork(&w->kind, &map[2], &map[3], 5, NULL), 0);
    assert_true(w->budget.used < full + FEW);
    assert_non_null(map_append(&w->kind, &map[1], NULL));
    assert_non_null(map_edit(&w->kind, &map[2], 1000, NULL));
    assert_true(w->budget.used < full + 2 * FEW);
    // The first one ends; most of it is the second one's now.
    map_truncate(&w->kind, &map[0], 0);
    sweep(w);
    assert_true(w->budget.used > full * 3 / 4);
    map_truncate(&w->kind, &map[1], 100);
    map_truncate(&w->kind, &map[2], 0);
    assert_true(w->budget.used > full * 3 / 4); // still to be freed
    uint64_t slices = 0, most = 0, before = w->budget.used;
    bool more = true;
    while (more) {
        uint64_t work = 1000;
        more = map_sweep(&w->kind, &work);
        most = max_u64(most, before - w->budget.used);
        before = w->budget.used;
        slices++;
    }
    assert_true(slices > MILLION / 1000 && most < 1000000);
    assert_true(w->budget.used < FEW);
    map_truncate(&w->kind, &map[1], 0);
    map_truncate(&w->kind, &map[3], 0);
    close_world(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_like_copies),
        cmocka_unit_test(test_refused_memory),
        cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_cost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
