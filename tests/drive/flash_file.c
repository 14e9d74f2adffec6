// SPDX-License-Identifier: Apache-2.0
// File back end: nothing is left behind, memory stays small and in the budget, a full disk fails
// what did not fit and nothing else, a system that refuses io_uring gets threads.
#include "flash_harness.h"
#include "tests/needs.h"

#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

static const struct flash_geometry geometry = {.page_bytes = 4096,
                                               .pages_per_block = 64,
                                               .blocks = 64,
                                               .dies = 4,
                                               .channels = 2,
                                               .read_bytes = 131072};

static int open_file(struct flash **out, const char *directory, bool no_uring, bool no_direct,
                     struct budget *budget, struct inst_msg *msg)
{
    struct flash_file_options options = {.directory = directory,
                                         .geometry = geometry,
                                         .budget = budget,
                                         .no_uring = no_uring,
                                         .no_direct = no_direct};
    return flash_file_open(out, &options, msg);
}

static size_t entries(const char *directory)
{
    size_t n = 0;
    DIR *dir = opendir(directory);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2; // . and ..
}

static void test_nothing_left(void **state)
{
    (void)state;
    char directory[512];
    snprintf(directory, sizeof directory, "%s/empty-XXXXXX", work_directory());
    assert_non_null(mkdtemp(directory));
    struct flash *a, *b;
    assert_int_equal(open_file(&a, directory, false, false, NULL, NULL), 0);
    assert_int_equal(open_file(&b, directory, true, true, NULL, NULL), 0);
    unsigned char *page = pages_new(4096);
    page_fill(page, 4096, 1);
    assert_int_equal(run_one(a, FLASH_PROGRAM, 0, 0, 1, page), 0);
    page_fill(page, 4096, 2);
    assert_int_equal(run_one(b, FLASH_PROGRAM, 0, 0, 1, page), 0);
    assert_int_equal(run_one(a, FLASH_READ, 0, 0, 1, page), 0);
    assert_true(page_is(page, 4096, 1)); // two stores in one directory never meet
    assert_int_equal(entries(directory), 0);
    struct stat st;
    assert_true(flash_file_descriptor(a) >= 0);
    assert_int_equal(fstat(flash_file_descriptor(a), &st), 0);
    assert_int_equal(st.st_nlink, 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_true(st.st_blocks * 512 < 1 << 20); // sparse
    flash_close(a);
    flash_close(b);
    assert_int_equal(entries(directory), 0);
    assert_int_equal(rmdir(directory), 0);
    free(page);
    assert_int_equal(flash_ram_open(&a, &geometry, 0, NULL), 0);
    assert_int_equal(flash_file_descriptor(a), -1);
    flash_close(a);
}

static uint64_t file_bytes(const struct flash *flash)
{
    struct stat st;
    assert_int_equal(fstat(flash_file_descriptor(flash), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

// The next process may need the room at once, whoever still holds the file then.
static void test_close_gives_back(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct flash *flash;
        struct stat st;
        assert_int_equal(open_file(&flash, work_directory(), mode & 1, mode & 2, NULL, NULL), 0);
        unsigned char *block = pages_new(64 * 4096);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_PROGRAM, b, 0, 64, block), 0);
        assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0);
        int held = dup(flash_file_descriptor(flash));
        assert_true(held >= 0);
        flash_close(flash);
        assert_int_equal(fstat(held, &st), 0);
        assert_true(st.st_blocks * 512 < 1 << 20);
        close(held);
        free(block);
    }
}

static void test_erase_gives_back(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct flash *flash;
        assert_int_equal(open_file(&flash, work_directory(), mode & 1, mode & 2, NULL, NULL), 0);
        unsigned char *block = pages_new(64 * 4096);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_PROGRAM, b, 0, 64, block), 0);
        assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0);
        assert_true(file_bytes(flash) >= 64 * 64 * 4096);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_ERASE, b, 0, 0, NULL), 0);
        assert_true(file_bytes(flash) < 1 << 20);
        flash_close(flash);
        free(block);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct inst_msg msg = {0};
    struct flash *flash = NULL;
    assert_int_equal(open_file(&flash, "/nowhere/at/all", false, false, NULL, &msg), INST_ENOENT);
    assert_non_null(strstr(msg.text, "/nowhere/at/all"));
    msg.text[0] = 0;
    assert_int_equal(open_file(&flash, "/dev/null", false, false, NULL, &msg), INST_ENOENT);
    struct budget budget;
    for (uint64_t limit = 0; limit < 256 * 1024; limit += 4096) {
        budget_init(&budget, limit);
        msg.text[0] = 0;
        int rc = open_file(&flash, work_directory(), limit % 8192 == 0, false, &budget, &msg);
        assert_true(rc == 0 || (rc == INST_ENOMEM && msg.text[0]));
        if (rc == 0)
            flash_close(flash);
        assert_int_equal(budget.used, 0);
    }
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    msg.text[0] = 0;
    int rc = open_file(&flash, work_directory(), false, false, NULL, &msg);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(rc, INST_ENOSPC);
    assert_non_null(strstr(msg.text, "ulimit"));
}

static uint64_t resident_bytes(void)
{
    uint64_t sum = 0, value;
    char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lu", &value) == 1 || sscanf(line, "RssShmem: %lu", &value) == 1)
            sum += value * 1024;
    fclose(file);
    return sum;
}

static void test_memory(void **state)
{
    (void)state;
    if (SANITIZED)
        leave_out("how much memory a drive on a file takes: a sanitizer has its own");
    struct flash_io *ios = calloc(4096, sizeof *ios);
    unsigned char *data = pages_new(4096 * 4096);
    for (int mode = 0; mode < 4; mode++) {
        struct budget budget;
        budget_init(&budget, UINT64_C(8) << 20);
        uint64_t before = resident_bytes();
        struct flash *flash;
        assert_int_equal(open_file(&flash, work_directory(), mode & 1, mode & 2, &budget, NULL), 0);
        for (int op = FLASH_PROGRAM; op >= FLASH_READ; op--) {
            for (size_t i = 0; i < 4096; i++)
                ios[i] = (struct flash_io){.op = (enum flash_op)op,
                                           .block = i / 64,
                                           .page = (uint32_t)(i % 64),
                                           .pages = 1,
                                           .data = data + i * 4096};
            run_all(flash, ios, 4096);
            for (size_t i = 0; i < 4096; i++)
                assert_int_equal(ios[i].status, 0);
        }
        uint64_t grown = resident_bytes() - before;
        print_message("%s: grew by %lu KiB, budget %lu KiB\n", flash->path, grown / 1024,
                      budget.used / 1024);
        assert_true((int64_t)grown < 512 * 1024);
        assert_true(budget.peak < 512 * 1024);
        flash_close(flash);
        assert_int_equal(budget.used, 0);
    }
    free(data);
    free(ios);
}

static size_t cached_pages(struct flash *flash)
{
    static unsigned char in[64 * 64];
    assert_null(flash->ops->poll(flash, clock_ns()));
    int fd = flash_file_descriptor(flash);
    void *map = mmap(NULL, sizeof in * 4096, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    assert_int_equal(mincore(map, sizeof in * 4096, in), 0);
    munmap(map, sizeof in * 4096);
    size_t cached = 0;
    for (size_t i = 0; i < sizeof in; i++)
        cached += in[i] & 1;
    return cached;
}

// Drops go on behind the operation that asked for them.
static void wait_for_drops(struct flash *flash)
{
    while (cached_pages(flash) >= 256)
        usleep(1000);
}

// Neither programs nor reads leave the cache of the system full of pages that only we use.
static void test_page_cache(void **state)
{
    (void)state;
    struct statfs fs;
    assert_int_equal(statfs(work_directory(), &fs), 0);
    if (fs.f_type == TMPFS_MAGIC)
        leave_out("what a drive on a file leaves in the page cache: the build lies in memory");
    for (int no_uring = 0; no_uring < 2; no_uring++) {
        struct flash *flash;
        assert_int_equal(open_file(&flash, work_directory(), no_uring, true, NULL, NULL), 0);
        unsigned char *block = pages_new(64 * 4096);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_PROGRAM, b, 0, 64, block), 0);
        assert_int_equal(run_one(flash, FLASH_SYNC, 0, 0, 0, NULL), 0);
        wait_for_drops(flash);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_READ, b, 0, 64, block), 0);
        wait_for_drops(flash);
        flash_close(flash);
        free(block);
    }
}

// On a file system of 1000 KiB that goes away with its last open file, whatever the test does.
static struct flash *open_on_tiny_disk(bool no_uring, bool no_direct)
{
    char directory[512];
    struct flash *flash = NULL;
    snprintf(directory, sizeof directory, "%s/full-XXXXXX", work_directory());
    assert_non_null(mkdtemp(directory));
    if (mount("tmpfs", directory, "tmpfs", MS_NOSUID | MS_NODEV, "size=1000k") == 0) {
        int rc = open_file(&flash, directory, no_uring, no_direct, NULL, NULL);
        assert_int_equal(umount2(directory, MNT_DETACH), 0);
        assert_int_equal(rc, 0);
    }
    rmdir(directory);
    return flash;
}

static void test_full_disk(void **state)
{
    (void)state;
    enum { N = 64 * 16, PAGES = 4, BYTES = PAGES * 4096 };
    struct flash_io *ios = calloc(N, sizeof *ios);
    unsigned char *data = pages_new(N * BYTES), *back = pages_new(BYTES);
    for (int mode = 0; mode < 4; mode++) {
        struct flash *flash = open_on_tiny_disk(mode & 1, mode & 2);
        if (!flash)
            leave_out("a full disk: only root can mount a small one");
        for (size_t i = 0; i < N; i++) {
            ios[i] = (struct flash_io){.op = FLASH_PROGRAM,
                                       .block = i / 16,
                                       .page = (uint32_t)(i % 16 * PAGES),
                                       .pages = PAGES,
                                       .data = data + i * BYTES};
            for (unsigned p = 0; p < PAGES; p++)
                page_fill(data + i * BYTES + p * 4096, 4096, i * PAGES + p);
        }
        run_all(flash, ios, N);
        size_t good = 0;
        for (size_t i = 0; i < N; i++) {
            assert_true(ios[i].status == 0 || ios[i].status == INST_ENOSPC);
            if (ios[i].status)
                continue;
            good++;
            assert_int_equal(run_one(flash, FLASH_READ, ios[i].block, ios[i].page, PAGES, back), 0);
            for (unsigned p = 0; p < PAGES; p++)
                assert_true(page_is(back + p * 4096, 4096, i * PAGES + p));
        }
        // Joined to 1 MiB no request fits; tried again alone 62 programs do, less what each of the
        // 64 requests in flight may waste: three pages of a program that did not.
        assert_in_range(good, (250 - 64 * 3) / PAGES, 62);
        for (uint64_t b = 0; b < 64; b++)
            assert_int_equal(run_one(flash, FLASH_ERASE, b, 0, 0, NULL), 0);
        assert_int_equal(run_one(flash, FLASH_PROGRAM, 5, 0, 64, data), 0);
        flash_close(flash);
    }
    free(back);
    free(data);
    free(ios);
}

// From now on the system refuses one call for good. False where it does not let us say so.
static bool forbid(uint32_t call, uint32_t error)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), // the number of the call
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = filter};
    return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
           !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int child_without_uring(void)
{
    if (!forbid(SYS_io_uring_setup, EPERM))
        return 77;
    struct flash *flash;
    if (open_file(&flash, work_directory(), false, false, NULL, NULL))
        return 1;
    if (!strstr(flash->path, "pread threads (io_uring: Operation not permitted)") &&
        !strstr(flash->path, "pread threads (io_uring: not available)"))
        return 2;
    unsigned char *page = pages_new(4096);
    page_fill(page, 4096, 5);
    int rc = run_one(flash, FLASH_PROGRAM, 0, 0, 1, page);
    memset(page, 0, 4096);
    rc = rc ? rc : run_one(flash, FLASH_READ, 0, 0, 1, page);
    rc = rc || !page_is(page, 4096, 5) ? 3 : 0;
    flash_close(flash);
    free(page);
    return rc;
}

static void run_child(int (*body)(void))
{
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        leave_out("a ring that is refused: this system lets nobody forbid a call");
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_uring_forbidden(void **state)
{
    (void)state;
    run_child(child_without_uring);
}

#ifdef HAVE_LIBURING
// The next so many submissions are refused.
static unsigned refusals;
int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);

// Requests that went to the kernel together, of the largest submission since this was 0.
static unsigned together;

int __wrap_io_uring_submit(struct io_uring *ring)
{
    if (!refusals) {
        unsigned ready = io_uring_sq_ready(ring);
        together = ready > together ? ready : together;
        return __real_io_uring_submit(ring);
    }
    refusals--;
    return refusals % 2 ? -ENOMEM : -EAGAIN;
}

// Reads `n` single pages that lie apart; returns how many of them went to the kernel together.
static unsigned read_apart(struct flash *flash, struct flash_io *ios, unsigned char *data, size_t n)
{
    const uint32_t page_bytes = flash->geometry.page_bytes;
    for (size_t i = 0; i < n; i++)
        ios[i] = (struct flash_io){
            .op = FLASH_READ, .block = i, .pages = 1, .data = data + i * page_bytes};
    together = 0;
    run_all(flash, ios, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(ios[i].status, 0);
        assert_true(page_is(data + i * page_bytes, page_bytes, i));
    }
    return together;
}

// Of much that is to be read half is on its way at a time, of little all.
static void test_half_at_a_time(void **state)
{
    (void)state;
    enum { N = 64, PAGE = 256 << 10, LITTLE = 8 };
    const struct flash_geometry g = {.page_bytes = PAGE,
                                     .read_bytes = PAGE,
                                     .pages_per_block = 2,
                                     .blocks = N,
                                     .dies = 1,
                                     .channels = 1};
    const struct flash_file_options options = {.directory = work_directory(), .geometry = g};
    struct flash *flash;
    assert_int_equal(flash_file_open(&flash, &options, NULL), 0);
    if (!strstr(flash->path, "io_uring, ")) {
        flash_close(flash);
        leave_out("io_uring: this system refuses it");
    }
    unsigned char *data = pages_new((size_t)N * PAGE);
    struct flash_io *ios = calloc(N, sizeof *ios);
    for (size_t i = 0; i < N; i++) {
        page_fill(data + i * PAGE, PAGE, i);
        ios[i] =
            (struct flash_io){.op = FLASH_PROGRAM, .block = i, .pages = 1, .data = data + i * PAGE};
    }
    run_all(flash, ios, N);
    assert_int_equal(read_apart(flash, ios, data, N), N / 2);
    assert_int_equal(read_apart(flash, ios, data, LITTLE), LITTLE);
    free(ios);
    free(data);
    flash_close(flash);
}

// A ring that is refused for a while loses nothing, however often that happens.
static void test_uring_refused_for_a_while(void **state)
{
    (void)state;
    enum { ROUNDS = 12, N = 96 };
    struct flash *flash;
    assert_int_equal(open_file(&flash, work_directory(), false, false, NULL, NULL), 0);
    if (!strstr(flash->path, "io_uring, ")) {
        flash_close(flash);
        leave_out("io_uring: this system refuses it");
    }
    unsigned char *data = pages_new(N * 4096);
    struct flash_io *ios = calloc(N, sizeof *ios);
    for (uint64_t round = 0; round < ROUNDS; round++)
        for (int op = FLASH_PROGRAM; op >= FLASH_READ; op--) {
            for (size_t i = 0; i < N; i++) {
                ios[i] = (struct flash_io){.op = (enum flash_op)op,
                                           .block = i * 7 % 32 * 2,
                                           .page = (uint32_t)(round * 3 + i / 32),
                                           .pages = 1,
                                           .data = data + i * 4096};
                if (op == FLASH_PROGRAM)
                    page_fill(data + i * 4096, 4096, round * N + i);
            }
            refusals =
                100 + 10 * (unsigned)round; // together more than the ring is forgiven at once
            run_all(flash, ios, N);
            refusals = 0;
            for (size_t i = 0; i < N; i++) {
                assert_int_equal(ios[i].status, 0);
                assert_true(page_is(data + i * 4096, 4096, round * N + i));
            }
            memset(data, 0, N * 4096);
        }
    flash_close(flash);
    free(data);
    free(ios);
}
#endif

// A ring that works and is then refused for good (a sandbox that closes, memory that never comes
// back): every operation ends with an I/O error, new ones too, without spinning and without hanging
// at the close; what was programmed before is not reported as anything else.
static int child_refused_later(void)
{
    enum { N = 200 };
    struct flash *flash;
    if (open_file(&flash, work_directory(), false, false, NULL, NULL) ||
        !strstr(flash->path, "io_uring, "))
        return 77;
    unsigned char *data = pages_new(N * 4096);
    struct flash_io *ios = calloc(N, sizeof *ios);
    if (run_one(flash, FLASH_PROGRAM, 0, 0, 64, data))
        return 1;
    if (!forbid(SYS_io_uring_enter, ENOMEM))
        return 77;
    struct timespec used;
    for (size_t i = 0; i < N; i++) // too many for the slots, some joined, some not
        ios[i] = (struct flash_io){.op = i % 3 ? FLASH_READ : FLASH_PROGRAM,
                                   .block = i % 3 ? 0 : 1 + i / 6,
                                   .page = i % 3 ? (uint32_t)i % 64 : (uint32_t)i / 3 % 2,
                                   .pages = 1,
                                   .data = data + i * 4096};
    run_all(flash, ios, N);
    for (size_t i = 0; i < N; i++)
        if (ios[i].status != INST_EIO)
            return 2;
    if (run_one(flash, FLASH_READ, 0, 3, 1, data) != INST_EIO ||
        run_one(flash, FLASH_ERASE, 0, 0, 0, NULL) != INST_EIO ||
        run_one(flash, FLASH_SYNC, 0, 0, 0, NULL) != INST_EIO)
        return 3;
    flash_close(flash);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) || used.tv_sec >= (SANITIZED ? 10 : 1))
        return 4; // it spun
    free(data);
    free(ios);
    return 0;
}

// The same while the ring still has hope: what was submitted ends all the same.
static int child_refused_at_close(void)
{
    struct flash *flash;
    if (open_file(&flash, work_directory(), false, false, NULL, NULL) ||
        !strstr(flash->path, "io_uring, "))
        return 77;
    unsigned char *data = pages_new(4096);
    if (!forbid(SYS_io_uring_enter, EAGAIN))
        return 77;
    struct flash_io io = {.op = FLASH_PROGRAM, .block = 63, .pages = 1, .data = data};
    flash->ops->submit(flash, &io, clock_ns());
    flash_close(flash);
    free(data);
    return 0;
}

static void test_uring_refused_later(void **state)
{
    (void)state;
    run_child(child_refused_later);
    run_child(child_refused_at_close);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_left),
        cmocka_unit_test(test_erase_gives_back),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_page_cache),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_uring_forbidden),
        cmocka_unit_test(test_close_gives_back),
        cmocka_unit_test(test_uring_refused_later),
#ifdef HAVE_LIBURING
        cmocka_unit_test(test_uring_refused_for_a_while),
        cmocka_unit_test(test_half_at_a_time),
#endif
    };
    return cmocka_run_group_tests_name("flash_file", tests, NULL, NULL);
}
