// SPDX-License-Identifier: Apache-2.0
#include "host/engine/store.h"
#include "host/engine/system.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64];

static void put(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *p = path + strlen(root) + 1; *p; p++)
        if (*p == '/') {
            *p = 0;
            mkdir(path, 0777);
            *p = '/';
        }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static uint64_t available(void)
{
    char proc[80], cgroup[80];
    snprintf(proc, sizeof proc, "%s/proc", root);
    snprintf(cgroup, sizeof cgroup, "%s/cgroup", root);
    return system_memory_available_in(proc, cgroup);
}

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/instinfer-system-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    put("proc/meminfo", "MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

static void the_least_limit_counts(void **state)
{
    (void)state;
    const uint64_t gib = 1ull << 30, mib = 1 << 20;
    put("proc/self/cgroup", "0::/a/b\n");
    assert_int_equal(available(), 4 * gib); // no such groups
    put("cgroup/a/b/memory.max", "max\n");
    put("cgroup/a/b/memory.current", "1000\n");
    assert_int_equal(available(), 4 * gib);
    // A limit above the process; its page cache counts as free.
    put("cgroup/a/memory.max", "1073741824\n");
    put("cgroup/a/memory.current", "536870912\n");
    assert_int_equal(available(), gib / 2);
    put("cgroup/a/memory.stat", "anon 5\ninactive_file 104857600\nactive_file 104857600\n");
    assert_int_equal(available(), gib / 2 + 200 * mib);
    put("cgroup/a/b/memory.max", "104857600\n");
    assert_int_equal(available(), 100 * mib - 1000);
    put("cgroup/a/b/memory.current", "204857600\n");
    assert_int_equal(available(), mib); // over the limit: the least
    // Version 1.
    put("proc/self/cgroup", "5:cpu:/x\n4:memory:/m\n");
    put("cgroup/memory/m/memory.limit_in_bytes", "2147483648\n");
    put("cgroup/memory/m/memory.usage_in_bytes", "1073741824\n");
    assert_int_equal(available(), gib);
    // Its use is that of all groups below, and so must be the page cache.
    put("cgroup/memory/m/memory.stat", "inactive_file 4096\ntotal_inactive_file 536870912\n");
    assert_int_equal(available(), gib + gib / 2);
    // Mounted together with another controller.
    put("proc/self/cgroup", "4:hugetlb,memory:/m\n");
    assert_int_equal(available(), gib + gib / 2);
    // In a container the name outside says nothing; what is mounted is the container's own group.
    put("proc/self/cgroup", "4:memory:/docker/0123\n0::/docker/0123\n");
    put("cgroup/memory/memory.limit_in_bytes", "536870912\n");
    put("cgroup/memory/memory.usage_in_bytes", "0\n");
    assert_int_equal(available(), gib / 2);
    put("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); // none
    assert_int_equal(available(), 4 * gib);
    // Beyond `high` a group is slowed down until it stands still.
    put("proc/self/cgroup", "0::/h\n");
    put("cgroup/h/memory.max", "max\n");
    put("cgroup/h/memory.high", "1073741824\n");
    put("cgroup/h/memory.current", "0\n");
    assert_int_equal(available(), gib);
}

static uint64_t quota(void)
{
    char proc[80], cgroup[80];
    snprintf(proc, sizeof proc, "%s/proc", root);
    snprintf(cgroup, sizeof cgroup, "%s/cgroup", root);
    return system_cpu_quota_in(proc, cgroup);
}

static void a_cpu_quota_is_heeded(void **state)
{
    (void)state;
    put("proc/self/cgroup", "0::/c/d\n");
    assert_true(quota() == UINT64_MAX); // no such groups
    static const struct {
        const char *text;
        uint64_t cpus;
    } cases[] = {{"max 100000\n", UINT64_MAX}, {"100000 100000\n", 1},   {"100001 100000\n", 2},
                 {"1000 100000\n", 1},         {"250000 50000\n", 5},    {"150000 100000\n", 2},
                 {"0 0\n", UINT64_MAX},        {"200000\n", UINT64_MAX}, {"\n", UINT64_MAX}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put("cgroup/c/d/cpu.max", cases[i].text);
        assert_true(quota() == cases[i].cpus);
    }
    put("cgroup/c/d/cpu.max", "800000 100000\n");
    put("cgroup/c/cpu.max", "300000 100000\n"); // the least above counts
    assert_int_equal(quota(), 3);
    put("proc/self/cgroup", "0::/\n3:cpu,cpuacct:/v/w\n");
    put("cgroup/cpu/v/w/cpu.cfs_quota_us", "-1\n");
    put("cgroup/cpu/v/w/cpu.cfs_period_us", "100000\n");
    assert_true(quota() == UINT64_MAX);
    put("cgroup/cpu/v/w/cpu.cfs_quota_us", "150000\n");
    assert_int_equal(quota(), 2);
    put("cgroup/cpu/v/cpu.cfs_quota_us", "50000\n");
    put("cgroup/cpu/v/cpu.cfs_period_us", "100000\n");
    assert_int_equal(quota(), 1);
    put("proc/self/cgroup", "3:cpuacct,cpuset:/v/w\n"); // other controllers
    assert_true(quota() == UINT64_MAX);
}

static void this_machine_has_something(void **state)
{
    (void)state;
    assert_in_range(system_cpus(), 1, 4096);
    assert_true(system_memory_available() >= 1 << 20);
}

static void places_are_parsed(void **state)
{
    (void)state;
    struct store_where w;
    struct inst_msg msg = {0};
    assert_int_equal(store_where_open(&w, "ram:2G@512M", &msg), 0);
    assert_true(w.kind == STORE_RAM && w.size == 2ull << 30 && w.rate == 512 << 20);
    store_where_free(&w);
    assert_int_equal(store_where_open(&w, "ram:1.5k@0.25G", &msg), 0);
    assert_true(w.size == 1536 && w.rate == 256 << 20);
    store_where_free(&w);
    assert_int_equal(store_where_open(&w, "null:", &msg), 0);
    assert_true(w.kind == STORE_NULL);
    store_where_free(&w);
    assert_int_equal(store_where_open(&w, "/tmp", &msg), 0);
    assert_true(w.kind == STORE_DIRECTORY);
    store_where_free(&w);
    static const char *const bad[] = {
        "ram:",       "ram:0",       "ram:1X",     "ram:1MB",
        "ram:-1",     "ram:1M@",     "ram: 1",     "ram:99999999999999999999",
        "ram:1M@0x1", "ram:0.5",     "ram:1.M",    "ram:.5M",
        "ram:0.0M",   "ram:1.2345M", "ram:1.5.5M", "ram:K"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        msg.text[0] = 0;
        assert_int_equal(store_where_open(&w, bad[i], &msg), INST_EINVAL);
        assert_non_null(strstr(msg.text, bad[i]));
        store_where_free(&w);
    }
    msg.text[0] = 0;
    assert_int_equal(store_where_open(&w, "/does/not/exist", &msg), INST_ENOENT);
    store_where_free(&w);
    msg.text[0] = 0;
    assert_int_equal(store_where_open(&w, "/proc/self/status", &msg), INST_ENOTSUP);
    store_where_free(&w);
}

static void the_default_place_is_found(void **state)
{
    (void)state;
    struct store_where w;
    struct stat st;
    char cache[96];
    snprintf(cache, sizeof cache, "%s/deep/cache", root);
    setenv("XDG_CACHE_HOME", cache, 1);
    assert_int_equal(store_where_open(&w, NULL, NULL), 0);
    strcat(cache, "/instinfer");
    assert_string_equal(w.path, cache);
    assert_true(w.is_default && stat(cache, &st)); // not made before it is needed
    store_where_free(&w);
    setenv("XDG_CACHE_HOME", "relative", 1);
    setenv("HOME", root, 1);
    assert_int_equal(store_where_open(&w, NULL, NULL), 0);
    snprintf(cache, sizeof cache, "%s/.cache/instinfer", root);
    assert_string_equal(w.path, cache);
    store_where_free(&w);
    unsetenv("XDG_CACHE_HOME");
    static const char *const homes[] = {NULL, "", "relative", "/does/not/exist"};
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++) {
        struct inst_msg msg = {0};
        if (homes[i])
            setenv("HOME", homes[i], 1);
        else
            unsetenv("HOME");
        assert_int_equal(store_where_open(&w, NULL, &msg), i < 3 ? INST_EINVAL : INST_EIO);
        assert_non_null(strstr(msg.text, "--kv"));
    }
    assert_true(stat("/does", &st));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_limit_counts),     cmocka_unit_test(a_cpu_quota_is_heeded),
        cmocka_unit_test(this_machine_has_something), cmocka_unit_test(places_are_parsed),
        cmocka_unit_test(the_default_place_is_found),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
