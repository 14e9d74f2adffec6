// SPDX-License-Identifier: Apache-2.0
// Bandwidth of the drive alone: dense decode attention over KV filled by WRITE, beside what the
// device (raw io_uring reads of the same file) or the memory (an fp16 dot product over as many
// bytes with as many threads) can do, measured in turns within one run. The device is measured
// twice: with idle cores, and with as many reading memory as attention has threads, since where the
// disk of a virtual machine is served by the cores that it lends, arithmetic costs disk.
#include "bandwidth_raw.h"
#include "base/clock.h"
#include "measure.h"

#include "drive/drive.h"
#include "link/link.h"

#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

struct options {
    const char *kv; // a directory, or NULL: RAM
    uint64_t bytes, dram;
    uint32_t layers, kv_heads, q_heads, head_dim, group, sequences;
    unsigned threads, rounds;
    double seconds;
    bool row_cache; // else everything is read
};

struct bench {
    struct options o;
    struct pool *pool;
    struct flash *flash;
    struct drive *drive;
    struct link *link;
    uint64_t tokens; // per sequence
    struct attend_layout layout;
    uint8_t *table, *in, *out;
    uint16_t *plain; // memory for the fp16 dot
    float *dots;
};

static void die(const char *what, const struct inst_msg *msg)
{
    fprintf(stderr, "bench_bandwidth: %s: %s\n", what, msg->text);
    exit(1);
}

static void call(struct bench *b, struct command c, const void *table, void *data)
{
    struct inst_msg msg = {0};
    if (link_call(b->link, &c, table, data, NULL, &msg))
        die(opcode_name(c.opcode), &msg);
}

static struct drive_stats stats(struct bench *b)
{
    struct inst_msg msg = {0};
    struct drive_stats s = {0};
    if (link_stat(b->link, &s, &msg))
        die("STAT", &msg);
    return s;
}

static void open_drive(struct bench *b)
{
    const struct options *o = &b->o;
    struct inst_msg msg = {0};
    struct flash_geometry geometry = {0};
    struct space_config config = {.layers = o->layers,
                                  .kv_heads = o->kv_heads,
                                  .head_dim = o->head_dim,
                                  .group_tokens = o->group,
                                  .max_sequences = o->sequences,
                                  .max_tokens = b->tokens,
                                  .q_heads = o->q_heads};
    if (pool_new(&b->pool, o->threads, &msg) ||
        drive_geometry_for(&geometry, &config, 0, o->dram, &msg))
        die("geometry", &msg);
    struct flash_file_options file = {.directory = o->kv, .geometry = geometry};
    if (o->kv ? flash_file_open(&b->flash, &file, &msg)
              : flash_ram_open(&b->flash, &geometry, 0, &msg))
        die("flash", &msg);
    struct drive_limits limits = {
        .dram_bytes = o->dram, .pool = b->pool, .no_row_cache = !o->row_cache};
    if (drive_open(&b->drive, b->flash, &limits, &msg) ||
        link_local_open(&b->link, b->drive, b->flash, &msg))
        die("drive", &msg);
    uint8_t payload[CONFIG_BYTES] __attribute__((aligned(64)));
    uint64_t group;
    space_config_encode(payload, &config);
    struct command c = {.opcode = OP_CONFIG, .space = 1};
    if (link_call(b->link, &c, payload, NULL, &group, &msg))
        die("CONFIG", &msg);
    b->o.group = (uint32_t)group;
}

// Every sequence gets its tokens in chunks of 512, layer after layer, as prefill writes them.
static void fill(struct bench *b)
{
    const struct options *o = &b->o;
    const uint64_t chunk = 512;
    uint64_t bytes;
    slab_bytes(o->kv_heads, chunk, o->head_dim, &bytes);
    uint8_t table[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    uint16_t *values = aligned_alloc(64, bytes);
    uint32_t x = 12345;
    for (uint64_t i = 0; i < bytes / 2; i++) {
        x = x * 1664525 + 1013904223;
        values[i] = kernel_f32_to_f16((float)(int32_t)x / 2147483648.0f);
    }
    table_put_header(table, &(struct table_header){.head_count = o->kv_heads});
    for (uint32_t s = 0; s < o->sequences; s++) {
        for (uint64_t pos = 0; pos < b->tokens; pos += chunk) {
            table_put_item(
                table, 0,
                &(struct table_item){.seq = s, .epoch = 1, .pos = pos, .n_tokens = chunk});
            for (uint32_t l = 0; l < o->layers; l++)
                call(b,
                     (struct command){.opcode = OP_WRITE,
                                      .space = 1,
                                      .layer = l,
                                      .count = 1,
                                      .length = (uint32_t)bytes},
                     table, values);
        }
    }
    call(b, (struct command){.opcode = OP_FLUSH}, NULL, NULL);
    free(values);
}

static void prepare_attend(struct bench *b)
{
    const struct options *o = &b->o;
    attend_layout(&b->layout, o->sequences, o->q_heads, o->kv_heads, o->head_dim, false);
    b->table = aligned_alloc(64, table_bytes(o->sequences));
    b->in = aligned_alloc(64, (b->layout.in_bytes + 63) / 64 * 64);
    b->out = aligned_alloc(64, (b->layout.out_bytes + 63) / 64 * 64);
    table_put_header(b->table, &(struct table_header){.q_heads = o->q_heads,
                                                      .scale = 1 / sqrtf((float)o->head_dim)});
    for (uint32_t s = 0; s < o->sequences; s++)
        table_put_item(b->table, s, &(struct table_item){.seq = s, .epoch = 1, .pos = b->tokens});
    float *q = (float *)(b->in + b->layout.q);
    for (uint64_t j = 0; j < (uint64_t)o->sequences * o->q_heads * o->head_dim; j++)
        q[j] = (float)(j % 17) / 17 - 0.5f;
}

// ATTEND and COLLECT of one layer after another, as a decode step does, without the host's work.
static double attend_bandwidth(struct bench *b, double seconds)
{
    uint64_t before = stats(b).flash_read_bytes;
    double start = clock_seconds(), end;
    uint32_t ticket = 1;
    do {
        for (uint32_t l = 0; l < b->o.layers; l++, ticket++) {
            call(b,
                 (struct command){.opcode = OP_ATTEND,
                                  .space = 1,
                                  .layer = l,
                                  .count = b->o.sequences,
                                  .ticket = ticket,
                                  .length = (uint32_t)b->layout.in_bytes},
                 b->table, b->in);
            call(b,
                 (struct command){.opcode = OP_COLLECT,
                                  .space = 1,
                                  .ticket = ticket,
                                  .length = (uint32_t)b->layout.out_bytes},
                 NULL, b->out);
        }
        end = clock_seconds();
    } while (end - start < seconds);
    return (double)(stats(b).flash_read_bytes - before) / (end - start);
}

// Threads that read memory, with what CPU time nobody else wants.
struct busy {
    pthread_t threads[64];
    unsigned n;
    const float *memory; // [BUSY_FLOATS]
    atomic_bool stop;
};

enum { BUSY_FLOATS = 16 << 20 };

static void *busy_main(void *arg)
{
    struct busy *busy = arg;
    volatile float sum = 0;
    (void)sum;
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19); // of this thread
    while (!atomic_load_explicit(&busy->stop, memory_order_relaxed))
        for (size_t i = 0; i < BUSY_FLOATS; i += 16)
            sum = busy->memory[i];
    return NULL;
}

// Raw reads while the cores are idle and while they are busy.
static int raw_bandwidth(const struct options *o, int fd, uint64_t written, uint32_t request,
                         const float *memory, double *idle, double *busy_rate, struct inst_msg *msg)
{
    int err = raw_read_bandwidth(fd, 0, written, request, RAW_DEPTH, o->seconds, idle, msg);
    if (err)
        return err;
    struct busy busy = {.memory = memory};
    while (busy.n < o->threads && busy.n < sizeof busy.threads / sizeof *busy.threads &&
           !pthread_create(&busy.threads[busy.n], NULL, busy_main, &busy))
        busy.n++;
    err = raw_read_bandwidth(fd, 0, written, request, RAW_DEPTH, o->seconds, busy_rate, msg);
    atomic_store(&busy.stop, true);
    while (busy.n)
        pthread_join(busy.threads[--busy.n], NULL);
    return err;
}

enum { DOT_COLS = 4096, DOT_ROWS = 32 };

static void dot_item(void *arg, size_t item, unsigned worker)
{
    struct bench *b = arg;
    struct weight w = {.data = b->plain + item * DOT_ROWS * DOT_COLS,
                       .rows = DOT_ROWS,
                       .cols = DOT_COLS,
                       .row_bytes = DOT_COLS * 2,
                       .type = TENSOR_F16};
    static const float x[DOT_COLS] __attribute__((aligned(64))) = {1, 2, 3};
    kernels_best()->matmul(&w, 0, DOT_ROWS, x, DOT_COLS, 1, b->dots + item * DOT_ROWS, DOT_ROWS,
                           pool_scratch(b->pool, worker));
}

// The same number of bytes as fp16, each multiplied with one fp32 vector.
static double dot_bandwidth(struct bench *b, double seconds)
{
    uint64_t items = b->o.bytes / (2ull * DOT_ROWS * DOT_COLS);
    double start = clock_seconds(), end;
    uint64_t bytes = 0;
    do {
        pool_run(b->pool, dot_item, b, items);
        bytes += items * 2 * DOT_ROWS * DOT_COLS;
        end = clock_seconds();
    } while (end - start < seconds);
    return (double)bytes / (end - start);
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(struct bench *b)
{
    const struct options *o = &b->o;
    struct inst_msg msg = {0};
    double best = 0, busy = 0, ratios[100], busy_ratios[100];
    uint32_t request = 0;
    int fd = flash_file_descriptor(b->flash);
    uint64_t written = stats(b).allocated_bytes;
    const float *memory = o->kv ? measure_alloc(BUSY_FLOATS * sizeof(float)) : NULL;
    if (o->kv && raw_read_best(fd, 0, written, 0.5, &best, &request, &msg))
        die("raw reads", &msg);
    if (!o->kv) {
        uint64_t values = o->bytes / 2;
        b->plain = aligned_alloc(4096, o->bytes);
        b->dots = aligned_alloc(64, (values / DOT_COLS + 16) * sizeof *b->dots);
        for (uint64_t i = 0; i < values; i++)
            b->plain[i] = (uint16_t)(0x3000 + i % 1024);
        pool_reserve_scratch(b->pool, KERNEL_SCRATCH_BYTES, NULL);
    }
    attend_bandwidth(b, 0.2); // warm
    for (unsigned r = 0; r < o->rounds; r++) {
        double limit = 0, drive = attend_bandwidth(b, o->seconds);
        if (!o->kv)
            limit = dot_bandwidth(b, o->seconds);
        else if (raw_bandwidth(o, fd, written, request, memory, &limit, &busy, &msg))
            die("raw reads", &msg);
        ratios[r] = drive / limit;
        busy_ratios[r] = o->kv ? drive / busy : 0;
        printf("round %u: attention %.2f GB/s, %s %.2f GB/s, ratio %.3f", r + 1, drive / 1e9,
               o->kv ? "raw io_uring" : "fp16 dot", limit / 1e9, ratios[r]);
        if (o->kv)
            printf("; with busy cores %.2f GB/s, ratio %.3f", busy / 1e9, busy_ratios[r]);
        printf("\n");
        fflush(stdout);
    }
    qsort(busy_ratios, o->rounds, sizeof *busy_ratios, compare_double);
    qsort(ratios, o->rounds, sizeof *ratios, compare_double);
    if (o->kv)
        printf("best raw request: %u KiB at depth %d (%.2f GB/s in the sweep)\n", request >> 10,
               RAW_DEPTH, best / 1e9);
    if (o->kv)
        printf("ratio with busy cores min %.3f median %.3f max %.3f\n", busy_ratios[0],
               busy_ratios[o->rounds / 2], busy_ratios[o->rounds - 1]);
    struct drive_stats s = stats(b);
    printf("ratio min %.3f median %.3f max %.3f; WAF %.4f, allocated/live %.3f, rows read ahead "
           "%.1f %%\n",
           ratios[0], ratios[o->rounds / 2], ratios[o->rounds - 1],
           (double)s.flash_program_bytes / (double)s.stream_bytes,
           (double)s.allocated_bytes / (double)s.live_bytes,
           s.flash_read_bytes && s.read_ahead_rows
               ? 100.0 * (double)s.read_ahead_hits / (double)s.read_ahead_rows
               : 0.0);
}

static const char usage[] =
    "usage: bench_bandwidth [--kv DIR] [--bytes MIB] [--dram MIB] [--layers N] [--kv-heads N]\n"
    "                   [--q-heads N] [--head-dim N] [--group T] [--sequences N]\n"
    "                   [--threads N] [--rounds N] [--seconds S]\n"
    "Without --kv the KV lies in a RAM back end and is compared with an fp16 dot product.\n";

static struct options parse(int argc, char **argv)
{
    struct options o = {.bytes = 1024,
                        .dram = 128,
                        .layers = 8,
                        .kv_heads = 8,
                        .q_heads = 32,
                        .head_dim = 64,
                        .sequences = 1,
                        .threads = 2,
                        .rounds = 5,
                        .seconds = 2};
    static const struct option names[] = {{"kv", 1, 0, 'k'},        {"bytes", 1, 0, 'b'},
                                          {"dram", 1, 0, 'd'},      {"layers", 1, 0, 'l'},
                                          {"kv-heads", 1, 0, 'h'},  {"q-heads", 1, 0, 'q'},
                                          {"head-dim", 1, 0, 'e'},  {"group", 1, 0, 'g'},
                                          {"sequences", 1, 0, 's'}, {"threads", 1, 0, 't'},
                                          {"rounds", 1, 0, 'r'},    {"seconds", 1, 0, 'S'},
                                          {"row-cache", 0, 0, 'c'}, {0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        uint32_t n =
            c == 'k' || c == 'S' || c == 'c' || c == '?' ? 0 : (uint32_t)strtoul(optarg, NULL, 10);
        switch (c) {
        case 'k':
            o.kv = optarg;
            break;
        case 'b':
            o.bytes = n;
            break;
        case 'd':
            o.dram = n;
            break;
        case 'l':
            o.layers = n;
            break;
        case 'h':
            o.kv_heads = n;
            break;
        case 'q':
            o.q_heads = n;
            break;
        case 'e':
            o.head_dim = n;
            break;
        case 'g':
            o.group = n;
            break;
        case 's':
            o.sequences = n;
            break;
        case 't':
            o.threads = n;
            break;
        case 'r':
            o.rounds = n < 1 ? 1 : n > 100 ? 100 : n;
            break;
        case 'S':
            o.seconds = strtod(optarg, NULL);
            break;
        case 'c':
            o.row_cache = true;
            break;
        default:
            fputs(usage, stderr);
            exit(2);
        }
    }
    o.bytes <<= 20;
    o.dram <<= 20;
    return o;
}

int main(int argc, char **argv)
{
    struct bench b = {.o = parse(argc, argv)};
    const struct options *o = &b.o;
    uint64_t per_token = 4ull * o->layers * o->kv_heads * o->head_dim * o->sequences;
    if (!per_token || o->bytes / per_token < 512) {
        fputs("bench_bandwidth: fewer than 512 tokens per sequence\n", stderr);
        return 2;
    }
    b.tokens = o->bytes / per_token / 512 * 512;
    open_drive(&b);
    char cpu[128];
    measure_cpu_name(cpu, sizeof cpu);
    printf("%s, %u threads: %u sequences x %llu tokens x %u layers, %u/%u heads x %u, token group "
           "%u, DRAM %llu MiB, %s\n",
           cpu, o->threads, o->sequences, (unsigned long long)b.tokens, o->layers, o->q_heads,
           o->kv_heads, o->head_dim, b.o.group, (unsigned long long)(o->dram >> 20), b.flash->path);
    fill(&b);
    prepare_attend(&b);
    run(&b);
    link_close(b.link);
    drive_close(b.drive);
    flash_close(b.flash);
    pool_free(b.pool);
    free(b.table);
    free(b.in);
    free(b.out);
    free(b.plain);
    free(b.dots);
    return 0;
}
