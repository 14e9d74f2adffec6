// SPDX-License-Identifier: Apache-2.0
#include "base/pool.h"

#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include <unistd.h>

struct job {
    uint32_t count[1000];
    unsigned threads;
};

static void count_item(void *arg, size_t item, unsigned worker)
{
    struct job *job = arg;
    job->count[item] += worker < job->threads ? 1 : 1000;
}

static void run_jobs(struct pool *pool, unsigned threads)
{
    static struct job job;
    for (size_t items = 0; items < 1000; items += 1 + items / 3) {
        memset(&job, 0, sizeof job);
        job.threads = threads;
        pool_run(pool, count_item, &job, items);
        for (size_t i = 0; i < 1000; i++)
            assert_int_equal(job.count[i], i < items);
    }
}

static void test_every_item_once(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 5; threads++) {
        struct pool *pool;
        assert_int_equal(pool_new(&pool, threads, NULL), 0);
        assert_int_equal(pool_threads(pool), threads);
        for (int round = 0; round < 50; round++)
            run_jobs(pool, threads);
        usleep(20000); // workers fall asleep; the next job wakes them
        run_jobs(pool, threads);
        pool_free(pool);
    }
    run_jobs(NULL, 1);
    assert_int_equal(pool_threads(NULL), 1);
    pool_free(NULL);
}

static void fill_scratch(void *arg, size_t item, unsigned worker)
{
    memset(pool_scratch(arg, worker), (int)item, 100);
    uint8_t *scratch = pool_scratch(arg, worker);
    for (int i = 0; i < 100; i++)
        assert_int_equal(scratch[i], item);
}

static void test_scratch(void **state)
{
    (void)state;
    struct pool *pool;
    assert_int_equal(pool_new(&pool, 3, NULL), 0);
    assert_int_equal(pool_reserve_scratch(pool, 100, NULL), 0);
    pool_run(pool, fill_scratch, pool, 100);
    assert_int_equal((uintptr_t)pool_scratch(pool, 2) % 64, 0);
    assert_int_equal(pool_reserve_scratch(pool, 100000, NULL), 0);
    pool_run(pool, fill_scratch, pool, 100);
    pool_free(pool);
}

static void test_refusals(void **state)
{
    (void)state;
    struct pool *pool;
    struct inst_msg msg = {0};
    assert_int_equal(pool_new(&pool, 0, &msg), INST_EINVAL);
    assert_string_equal(msg.text, "0 threads: must be 1 to 1024");
    assert_null(pool);
    assert_int_equal(pool_new(&pool, 1025, NULL), INST_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_item_once),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
