// SPDX-License-Identifier: Apache-2.0
// The drive array over real drives: the same bits as one drive for every number of drives and
// heads, and nothing lost, left over or mixed up when single drives refuse, are slow or die.
#include "tests/link/array_rig.h"
#include "base/le.h"

#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { LAYERS = 2, GROUP = 16, SEQUENCES = 6 };

static struct rig_options options(uint32_t drives, uint32_t kv_heads, uint32_t group_heads,
                                  uint32_t head_dim)
{
    return (struct rig_options){.drives = drives,
                                .config = {.layers = LAYERS,
                                           .kv_heads = kv_heads,
                                           .q_heads = kv_heads * group_heads,
                                           .head_dim = head_dim,
                                           .group_tokens = GROUP,
                                           .max_sequences = SEQUENCES,
                                           .max_tokens = 256}};
}

static void shares_of(uint32_t drives, uint32_t sets, uint32_t together)
{
    const uint32_t heads = sets * together;
    uint32_t groups = link_array_share(drives, heads, together, 0).groups, least = heads, most = 0;
    assert_int_equal(groups, drives > sets ? (drives + sets - 1) / sets : 1);
    for (uint32_t g = 0; g < groups; g++) {
        unsigned char held[120] = {0};
        for (uint32_t i = 0; i < drives; i++) {
            struct link_share s = link_array_share(drives, heads, together, i);
            assert_int_equal(s.groups, groups);
            if (s.group != g)
                continue;
            assert_true(s.head_count > 0 && s.head_first + s.head_count <= heads);
            assert_true(s.head_first % together == 0 && s.head_count % together == 0);
            for (uint32_t h = s.head_first; h < s.head_first + s.head_count; h++)
                held[h]++;
            least = s.head_count < least ? s.head_count : least;
            most = s.head_count > most ? s.head_count : most;
        }
        for (uint32_t h = 0; h < heads; h++)
            assert_int_equal(held[h], 1);
    }
    if (groups == 1)
        assert_true(most - least <= together);
}

static void shares_are_a_partition(void **state)
{
    (void)state;
    for (uint32_t drives = 1; drives <= LINK_ARRAY_MOST; drives++)
        for (uint32_t sets = 1; sets <= 40; sets++)
            for (uint32_t together = 1; together <= 3; together++)
                shares_of(drives, sets, together);
}

// ---- the same as one drive ---------------------------------------------------------------------

static void attend_all(struct rig *rig, const uint64_t *length, bool append)
{
    struct rig_query query[SEQUENCES];
    uint32_t n = 0;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        if (length[s])
            query[n++] = (struct rig_query){s, length[s], append};
    }
    for (uint32_t layer = 0; layer < LAYERS && n; layer++)
        assert_int_equal(rig_expect_attention(rig, layer, query, n), 0);
}

// Random work: both sides must agree about every status and every byte.
static void live(const struct rig_options *o, uint64_t seed, unsigned steps)
{
    struct rig rig;
    rig_open(&rig, o);
    uint64_t length[SEQUENCES] = {0}, random = seed;
    for (unsigned step = 0; step < steps; step++) {
        uint32_t s = rig_random(&random, SEQUENCES), other = rig_random(&random, SEQUENCES);
        uint32_t n = 1 + rig_random(&random, 40);
        switch (rig_random(&random, 8)) {
        case 0:
        case 1:
            if (length[s] + n > 200)
                break;
            assert_int_equal(rig_write_all(&rig, s, length[s], n), 0);
            length[s] += n;
            break;
        case 2:
            attend_all(&rig, length, false);
            break;
        case 3:
            attend_all(&rig, length, true);
            for (uint32_t i = 0; i < SEQUENCES; i++)
                length[i] += length[i] != 0;
            break;
        case 4: // an ended sequence's number is used again
            if (!length[s])
                break;
            assert_int_equal(rig_reclaim(&rig, s, length[s] / (n % 3 + 1) / 16 * 16), 0);
            length[s] = length[s] / (n % 3 + 1) / 16 * 16;
            break;
        case 5:
            if (!length[s] || length[other])
                break;
            length[other] = length[s] / (n % 3 + 1);
            if (length[other])
                assert_int_equal(rig_fork(&rig, s, other, length[other]), 0);
            break;
        case 6: // refused by both, for the same reason
            assert_true(rig_write_all(&rig, s, length[s] + 5, n) < 0);
            if (length[s] && length[other] && s != other)
                assert_int_equal(rig_fork(&rig, s, other, length[s]), INST_EEXIST);
            break;
        default:
            if (length[s])
                rig_expect_tokens(&rig, s, n % LAYERS, length[s] / 2, length[s] - length[s] / 2);
        }
    }
    struct drive_stats one, all;
    rig_stats(&rig, rig.one, &one);
    rig_stats(&rig, rig.array, &all);
    assert_int_equal(all.sequences, one.sequences);
    assert_int_equal(all.attended_tokens, one.attended_tokens);
    assert_int_equal(all.stream_bytes, one.stream_bytes);
    assert_int_equal(all.audits, one.audits);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        assert_int_equal(rig_reclaim(&rig, s, 0), 0);
    rig_stats(&rig, rig.array, &all);
    assert_int_equal(all.sequences, 0);
    assert_int_equal(all.live_bytes, 0);
    assert_int_equal(all.rows_in_dram, 0);
    rig_close(&rig);
}

static void every_number_of_drives_gives_the_bits_of_one(void **state)
{
    (void)state;
    static const struct {
        uint32_t kv_heads, group, head_dim;
    } shapes[] = {{8, 1, 16}, {8, 4, 16}, {4, 2, 32}, {5, 1, 16},
                  {7, 3, 16}, {3, 2, 64}, {2, 8, 16}, {1, 4, 32}};
    static const uint32_t drives[] = {1, 2, 3, 4, 8};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (size_t d = 0; d < sizeof drives / sizeof *drives; d++) {
            struct rig_options o =
                options(drives[d], shapes[i].kv_heads, shapes[i].group, shapes[i].head_dim);
            live(&o, 100 * i + d, 60);
        }
    }
}

static void sparf_too(void **state)
{
    (void)state;
    for (uint32_t drives = 1; drives <= 5; drives++) {
        struct rig_options o = options(drives, 4, 2, 32);
        o.config.method = METHOD_SPARF;
        live(&o, drives, 60);
    }
}

static void several_items_and_parts_of_the_heads(void **state)
{
    (void)state;
    enum { HEADS = 5, N = 7, DIM = 16 };
    for (uint32_t drives = 1; drives <= 8; drives++) {
        struct rig rig;
        struct rig_options o = options(drives, HEADS, 2, DIM);
        rig_open(&rig, &o);
        // Some heads now, the others later; a range that no drive's share begins or ends with.
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            assert_int_equal(rig_write(&rig, NULL, 0, layer, 0, N, 1, 3), 0);
            assert_int_equal(rig_write(&rig, NULL, 0, layer, 0, N, 0, 1), 0);
            assert_int_equal(rig_write(&rig, NULL, 0, layer, 0, N, 4, 1), 0);
            rig_expect_tokens(&rig, 0, layer, 2, N - 2);
        }
        // Several sequences in one WRITE and in one READ.
        alignas(64) static unsigned char table[1024], data[1 << 16], back[1 << 16];
        table_put_header(table, &(struct table_header){.head_first = 1, .head_count = 4});
        uint32_t bytes = 0;
        for (uint32_t i = 0; i < 3; i++) {
            table_put_item(table, i,
                           &(struct table_item){.seq = 2 + i, .epoch = 3 + i, .n_tokens = N + i});
            bytes += 4 * (N + i) * DIM * 4;
        }
        for (uint32_t i = 0; i < bytes; i++)
            data[i] = (unsigned char)(i % 2 ? 0x38 + i % 4 : i * 7);
        struct command write = {.opcode = OP_WRITE, .count = 3, .length = bytes};
        struct command read = {.opcode = OP_READ, .count = 3, .ticket = 900};
        struct command collect = {.opcode = OP_COLLECT, .ticket = 900, .length = bytes};
        assert_int_equal(rig_both(&rig, write, table, data), 0);
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(rig_write(&rig, NULL, 2 + i, 0, 0, N + i, 0, 1), 0);
        assert_int_equal(rig_both(&rig, read, table, NULL), 0);
        assert_int_equal(rig_both(&rig, collect, NULL, back), 0);
        assert_memory_equal(data, back, bytes);
        rig_close(&rig);
    }
}

// ---- single drives that refuse, are slow or die ------------------------------------------------

// The state of every drive, as far as a refused command could change it.
struct trace {
    uint64_t sequences, rows, live, stream, dram;
};

static void look(struct rig *rig, struct trace out[DRIVES_MOST])
{
    for (uint32_t i = 0; i < rig->o.drives; i++) {
        struct drive_stats s;
        rig_drive_stats(rig, i, &s);
        out[i] = (struct trace){s.sequences, s.rows_in_dram, s.live_bytes, s.stream_bytes,
                                s.dram_used_bytes};
    }
}

static void expect_no_trace(struct rig *rig, const struct trace before[DRIVES_MOST])
{
    struct trace now[DRIVES_MOST];
    look(rig, now);
    assert_memory_equal(now, before, rig->o.drives * sizeof *now);
}

static const struct gate_plan open_gate;

static struct gate_plan refuse(uint8_t opcode, uint64_t times, int code)
{
    return (struct gate_plan){.opcode = opcode, .refuse = times, .code = code};
}

static void writes_that_one_drive_refuses(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(3, 4, 2, 16);
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 1, 0, 20), 0);
    for (uint32_t drive = 0; drive < 3; drive++) {
        struct gate_plan plan = refuse(OP_WRITE, 1, INST_ENORESOURCE);
        uint64_t at = 20 + 30ull * drive;
        rig_gate(&rig, drive, &plan);
        assert_int_equal(rig_write(&rig, rig.array, 1, 0, at, 30, 0, 4), INST_ENORESOURCE);
        assert_non_null(strstr(rig.msg.text, "of 3"));
        assert_non_null(strstr(rig.msg.text, "refused by the test"));
        assert_int_equal(rig_passed(&rig, drive, OP_WRITE), 0);
        // Once more: two drives have done it already.
        assert_int_equal(rig_write_all(&rig, 1, at, 30), 0);
        rig_gate(&rig, drive, &open_gate);
        rig_expect_tokens(&rig, 1, 0, 0, at + 30);
        rig_expect_tokens(&rig, 1, 1, 0, at + 30);
    }
    // Or never again: the sequence is cut, and nothing is left of it.
    struct trace before[DRIVES_MOST];
    look(&rig, before);
    struct gate_plan plan = refuse(OP_WRITE, 1, INST_ENOSPC);
    rig_gate(&rig, 1, &plan);
    assert_int_equal(rig_write(&rig, rig.array, 1, 0, 110, 1, 0, 4), INST_ENOSPC);
    assert_non_null(strstr(rig.msg.text, "drive 2 of 3 (b)"));
    assert_int_equal(rig_reclaim(&rig, 1, 110), 0);
    expect_no_trace(&rig, before);
    rig_gate(&rig, 1, &plan);
    assert_int_equal(rig_write(&rig, rig.array, 2, 0, 0, 2, 0, 4), INST_ENOSPC);
    assert_int_equal(rig_reclaim(&rig, 2, 0), 0);
    expect_no_trace(&rig, before);
    rig_expect_tokens(&rig, 1, 0, 0, 110);
    // A drive that will not be better tomorrow is the one to tell about.
    struct gate_plan hard = refuse(OP_WRITE, 1, INST_EIO);
    plan = refuse(OP_WRITE, 1, INST_ENORESOURCE);
    rig_gate(&rig, 0, &plan);
    rig_gate(&rig, 2, &hard);
    assert_int_equal(rig_write(&rig, rig.array, 1, 0, 110, 2, 0, 4), INST_EIO);
    assert_non_null(strstr(rig.msg.text, "drive 3 of 3 (c)"));
    assert_int_equal(rig_reclaim(&rig, 1, 110), 0);
    rig_close(&rig);
}

static void attends_that_one_drive_refuses(void **state)
{
    (void)state;
    enum { TIMES = 100 }; // more than there are tickets
    struct rig rig;
    struct rig_options o = options(3, 4, 2, 16);
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 40), 0);
    assert_int_equal(rig_write_all(&rig, 1, 0, 7), 0);
    struct rig_query query[] = {{0, 40, true}, {1, 7, true}, {2, 0, true}};
    alignas(64) static unsigned char table[1024], data[1 << 16];
    for (uint32_t drive = 0; drive < 3; drive++) {
        struct gate_plan plan = refuse(OP_ATTEND, TIMES, INST_ENORESOURCE);
        rig_gate(&rig, drive, &plan);
        for (int i = 0; i < TIMES; i++) {
            size_t bytes;
            struct command c = rig_attend_command(&rig, 0, query, 3, table, data, &bytes);
            assert_int_equal(rig_array(&rig, c, table, data), INST_ENORESOURCE);
        }
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            assert_int_equal(rig_expect_attention(&rig, layer, query, 3), 0);
        for (int i = 0; i < 3; i++)
            query[i].pos++;
    }
    rig_expect_tokens(&rig, 0, 0, 0, 43);
    rig_expect_tokens(&rig, 2, 1, 0, 3);
    rig_close(&rig);
}

static void forks_and_spaces_that_one_drive_refuses(void **state)
{
    (void)state;
    for (uint32_t heads = 2; heads <= 4; heads += 2) { // two groups, and one
        struct rig rig;
        struct rig_options o = options(4, heads, 2, 16);
        struct trace before[DRIVES_MOST];
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 20), 0);
        look(&rig, before);
        // Sequence 1 went to the first group: drives 1 and 3 of two, all of one.
        struct gate_plan plan = refuse(OP_FORK, 1, INST_ENORESOURCE);
        unsigned char table[TABLE_HEADER_BYTES + 2 * TABLE_ITEM_BYTES];
        table_put_header(table, &(struct table_header){0});
        for (uint32_t i = 0; i < 2; i++)
            table_put_item(
                table, i,
                &(struct table_item){
                    .seq = 3 + i, .epoch = 4 + i, .pos = 13, .parent = 1, .parent_epoch = 2});
        struct command fork = {.opcode = OP_FORK, .count = 2};
        rig_gate(&rig, 2, &plan);
        assert_int_equal(rig_array(&rig, fork, table, NULL), INST_ENORESOURCE);
        expect_no_trace(&rig, before);
        assert_int_equal(rig_both(&rig, fork, table, NULL), 0);
        assert_int_equal(rig_both(&rig, fork, table, NULL), 0); // a repetition
        rig_expect_tokens(&rig, 4, 1, 0, 13);
        assert_int_equal(rig_write_all(&rig, 4, 13, 9), 0);
        // A repetition that is refused takes nothing away.
        plan = refuse(OP_FORK, 1, INST_ENORESOURCE);
        rig_gate(&rig, 2, &plan);
        assert_int_equal(rig_array(&rig, fork, table, NULL), INST_ENORESOURCE);
        rig_expect_tokens(&rig, 4, 1, 0, 22);

        look(&rig, before);
        unsigned char config[CONFIG_BYTES];
        space_config_encode(config, &o.config);
        struct command configure = {.opcode = OP_CONFIG, .cid = 1, .space = RIG_SPACE + 1};
        plan = refuse(OP_CONFIG, 1, INST_ENOMEM);
        rig_gate(&rig, 3, &plan);
        struct inst_msg msg = {0};
        assert_int_equal(link_call(rig.array, &configure, config, NULL, NULL, &msg), INST_ENOMEM);
        assert_non_null(strstr(msg.text, "drive 4 of 4 (d)"));
        expect_no_trace(&rig, before);
        assert_int_equal(link_call(rig.array, &configure, config, NULL, NULL, &msg), 0);
        assert_int_equal(link_call(rig.array, &configure, config, NULL, NULL, &msg), 0);
        configure.opcode = OP_REMOVE;
        assert_int_equal(link_call(rig.array, &configure, NULL, NULL, NULL, &msg), 0);
        expect_no_trace(&rig, before);
        rig_close(&rig);
    }
}

static void malformed_commands_leave_no_trace(void **state)
{
    (void)state;
    for (uint32_t drives = 3; drives <= 8; drives += 5) {
        struct rig rig;
        struct rig_options o = options(drives, 3, 2, 16);
        struct trace before[DRIVES_MOST];
        alignas(64) static unsigned char table[1024], data[1 << 14];
        size_t bytes;
        rig_open(&rig, &o);
        assert_int_equal(rig_write_all(&rig, 1, 0, 20), 0);
        look(&rig, before);
        struct rig_query query[] = {{1, 20, true}};
        struct command attend = rig_attend_command(&rig, 0, query, 1, table, data, &bytes);
        for (int i = 0; i < 5; i++) {
            struct command c = attend;
            c.layer = i == 0 ? LAYERS : 0;
            c.count = i == 1 ? 0 : i == 2 ? 70000 : 1;
            c.length -= i == 3 ? 64 : 0;
            if (i == 4)
                table_put_header(table, &(struct table_header){.q_heads = 4, .scale = 1});
            assert_int_equal(rig_both(&rig, c, table, data), INST_EINVAL);
            expect_no_trace(&rig, before);
        }
        static const struct {
            uint32_t first, count;
            uint64_t n;
        } slabs[] = {{0, 4, 2}, {3, 1, 2}, {1, 3, 2},          {2, UINT32_MAX, 2},
                     {0, 0, 2}, {0, 3, 0}, {0, 3, UINT64_MAX}, {0, 3, 1000}};
        for (size_t i = 0; i < sizeof slabs / sizeof *slabs; i++) {
            for (int read = 0; read < 2; read++) {
                struct command c = {.opcode = read ? OP_READ : OP_WRITE,
                                    .count = 1,
                                    .length = sizeof data,
                                    .ticket = 7000};
                if (read && slabs[i].n == 1000)
                    continue;
                table_put_header(table, &(struct table_header){.head_first = slabs[i].first,
                                                               .head_count = slabs[i].count});
                table_put_item(
                    table, 0,
                    &(struct table_item){.seq = 1, .epoch = 2, .pos = 20, .n_tokens = slabs[i].n});
                assert_int_equal(rig_both(&rig, c, table, data), INST_EINVAL);
                expect_no_trace(&rig, before);
            }
        }
        for (uint8_t opcode = 0; opcode < 255; opcode++) {
            if (strcmp(opcode_name(opcode), "unknown command") && opcode != OP_SEAL)
                continue;
            assert_int_equal(
                rig_both(&rig, (struct command){.opcode = opcode, .length = 64}, NULL, data),
                INST_ENOTSUP);
        }
        rig_close(&rig);
    }
}

static void commands_go_to_all_before_any_is_waited_for(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(4, 4, 1, 16);
    o.alone = true;
    rig_open(&rig, &o);
    struct gate_plan hold = {.hold = true};
    for (uint32_t i = 0; i < 4; i++)
        rig_gate(&rig, i, i ? &open_gate : &hold);
    alignas(64) static unsigned char table[1024], data[1 << 14];
    size_t bytes;
    struct rig_query query[] = {{1, 0, true}};
    struct completion done;
    struct command c = rig_attend_command(&rig, 0, query, 1, table, data, &bytes);
    c.space = RIG_SPACE;
    assert_int_equal(rig.array->ops->submit(rig.array, &c, table, data), 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(rig_passed(&rig, i, OP_ATTEND), 1);
    for (int i = 0; i < 20; i++)
        assert_int_equal(rig.array->ops->poll(rig.array, &done, 1, 100000), 0);
    rig_gate(&rig, 0, &open_gate);
    while (!rig.array->ops->poll(rig.array, &done, 1, 1000000))
        ;
    assert_int_equal(done.status, 0);
    // A queue that is full for a while loses nothing.
    struct gate_plan full = {.full = 30};
    rig_gate(&rig, 2, &full);
    assert_int_equal(rig_write_all(&rig, 5, 0, 30), 0);
    rig_expect_tokens(&rig, 5, 1, 0, 30);
    rig_close(&rig);
}

static int collect(struct rig *rig, uint32_t ticket, size_t bytes, uint32_t timeout_ms, void *out)
{
    return rig_array(rig,
                     (struct command){.opcode = OP_COLLECT,
                                      .ticket = ticket,
                                      .length = (uint32_t)bytes,
                                      .timeout_ms = timeout_ms},
                     NULL, out);
}

// It is aborted and has failed; what the others have of the command stays, and it may answer again.
static void a_drive_without_an_answer(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(3, 4, 2, 16);
    o.limit_ns = 30 * 1000 * 1000;
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 40), 0);
    alignas(64) static unsigned char table[1024], data[1 << 14], out[1 << 14];
    size_t bytes;
    struct rig_query query[] = {{0, 40, false}};
    struct command attend = rig_attend_command(&rig, 0, query, 1, table, data, &bytes);
    assert_int_equal(rig_array(&rig, attend, table, data), 0);
    rig_gate(&rig, 1, &(struct gate_plan){.hold = true});
    memset(out, 0xa5, sizeof out);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 0, out), INST_EIO);
    assert_non_null(strstr(rig.msg.text, "drive 2 of 3"));
    assert_non_null(strstr(rig.msg.text, "no answer in 0.03 s"));
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(out[i], 0xa5);
    assert_int_equal(link_array_failed(rig.array), 1 << 1);
    // Refused by one, it is taken back from the others; then all of them are as good as before.
    assert_int_equal(rig_array(&rig, attend, table, data), INST_EIO);
    assert_int_equal(rig_write(&rig, rig.array, 0, 0, 40, 3, 0, 4), INST_EIO);
    rig_gate(&rig, 1, &open_gate);
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(out[i], 0xa5);
    assert_int_equal(rig_reclaim(&rig, 0, 40), 0);
    assert_int_equal(rig_write_all(&rig, 0, 40, 3), 0);
    rig_expect_tokens(&rig, 0, 0, 0, 43);
    assert_int_equal(rig_array(&rig, attend, table, data), 0);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 0, out), 0);
    rig_close(&rig);
}

static void tickets_are_one_drives(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(3, 4, 2, 16);
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 40), 0);
    alignas(64) static unsigned char table[1024], data[1 << 14], out[1 << 14], want[1 << 14];
    size_t bytes;
    struct rig_query query[] = {{0, 40, false}};
    struct command attend = rig_attend_command(&rig, 0, query, 1, table, data, &bytes);
    struct command abort = {.opcode = OP_ABORT, .ticket = attend.ticket};
    assert_int_equal(rig_both(&rig, abort, NULL, NULL), 0); // there is none: result 0
    assert_int_equal(rig_both(&rig, attend, table, data), 0);
    assert_int_equal(rig_both(&rig, attend, table, data), INST_EEXIST);
    assert_int_equal(collect(&rig, attend.ticket, bytes - 1, 0, out), INST_EINVAL);
    // One drive is late: the result is not lost with the COLLECT that did not wait for it.
    struct gate_plan hold = {.hold = true};
    rig_gate(&rig, 1, &hold);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 20, out), INST_ETIMEOUT);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 20, out), INST_ETIMEOUT);
    rig_gate(&rig, 1, &open_gate);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 0, out), 0);
    struct command one = {.opcode = OP_COLLECT, .ticket = attend.ticket, .length = (uint32_t)bytes};
    assert_int_equal(rig_link(&rig, rig.one, one, NULL, want), 0);
    assert_memory_equal(out, want, 4 * 2 * 16 * 4);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 20, out), INST_ETIMEOUT); // it has gone
    // Given up: the number is free again.
    assert_int_equal(rig_both(&rig, attend, table, data), 0);
    assert_int_equal(rig_both(&rig, abort, NULL, NULL), 0); // result 1
    assert_int_equal(rig_both(&rig, attend, table, data), 0);
    rig_gate(&rig, 0, &hold);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 20, out), INST_ETIMEOUT);
    rig_gate(&rig, 0, &open_gate);
    assert_int_equal(rig_link(&rig, rig.array, abort, NULL, NULL), 0);
    assert_int_equal(rig_array(&rig, attend, table, data), 0);
    assert_int_equal(collect(&rig, attend.ticket, bytes, 0, out), 0);
    assert_memory_equal(out, want, 4 * 2 * 16 * 4);
    // A COLLECT that comes first waits for its ticket.
    struct completion done[2];
    struct command first = {.opcode = OP_COLLECT,
                            .cid = 500,
                            .space = RIG_SPACE,
                            .ticket = attend.ticket,
                            .length = (uint32_t)bytes};
    attend.cid = 501;
    attend.space = RIG_SPACE;
    memset(out, 0, bytes);
    assert_int_equal(rig.array->ops->submit(rig.array, &first, NULL, out), 0);
    assert_int_equal(rig.array->ops->poll(rig.array, done, 2, 1000000), 0);
    assert_int_equal(rig.array->ops->submit(rig.array, &attend, table, data), 0);
    for (size_t n = 0; n < 2;)
        n += rig.array->ops->poll(rig.array, done + n, 2 - n, 1000000);
    assert_int_equal(done[0].cid, 501);
    assert_int_equal(done[1].cid, 500);
    assert_int_equal(done[1].status, 0);
    assert_memory_equal(out, want, 4 * 2 * 16 * 4);
    // As many as one drive has, and no more.
    for (uint32_t i = 0; i <= 64; i++) {
        attend.ticket = 1000 + i;
        assert_int_equal(rig_array(&rig, attend, table, data), i < 64 ? 0 : INST_ENORESOURCE);
    }
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(collect(&rig, 1000 + i, bytes, 0, out), 0);
    // What was forgotten is not there, what was not is.
    assert_int_equal(rig.array->ops->submit(rig.array, &attend, table, data), 0);
    first.ticket = attend.ticket;
    assert_int_equal(rig.array->ops->submit(rig.array, &first, NULL, out), 0);
    rig.array->ops->abort(rig.array);
    assert_int_equal(rig.array->ops->poll(rig.array, done, 2, 1000000), 0);
    rig_expect_tokens(&rig, 0, 1, 0, 40);
    rig_close(&rig);
}

static void an_item_that_fails_on_one_drive_fails(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(3, 4, 1, 16);
    o.alone = true;
    rig_open(&rig, &o);
    for (uint32_t s = 0; s < 3; s++)
        assert_int_equal(rig_write_all(&rig, s, 0, 40), 0);
    alignas(64) static unsigned char table[1024], data[1 << 14], want[1 << 14], out[1 << 14];
    size_t bytes;
    struct rig_query query[] = {{0, 40, false}, {1, 40, false}, {2, 40, false}};
    struct command c = rig_attend_command(&rig, 0, query, 3, table, data, &bytes);
    struct attend_layout l;
    attend_layout(&l, 3, 4, 4, 16, false);
    assert_int_equal(rig_array(&rig, c, table, data), 0);
    assert_int_equal(collect(&rig, c.ticket, bytes, 0, want), 0);
    // Behind the array's back, drive 2 loses what it has of sequence 1.
    unsigned char cut[TABLE_HEADER_BYTES + TABLE_ITEM_BYTES];
    table_put_header(cut, &(struct table_header){0});
    table_put_item(
        cut, 0,
        &(struct table_item){.seq = 1, .epoch = 2, .n_tokens = UINT64_MAX, .layer_count = LAYERS});
    struct command reclaim = {.opcode = OP_RECLAIM, .count = 1};
    assert_int_equal(rig_link(&rig, rig.unit[1].link, reclaim, cut, NULL), 0);
    assert_int_equal(rig_array(&rig, c, table, data), 0);
    assert_int_equal(collect(&rig, c.ticket, bytes, 0, out), 0);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t nvme = le_get32(out + l.status + 4 * (size_t)i);
        assert_int_equal(inst_status_from_nvme((uint16_t)nvme), i == 1 ? INST_ENOENT : 0);
        for (size_t b = 0; b < 4 * 16 * 4; b++)
            assert_int_equal(out[l.out + i * 256 + b], i == 1 ? 0 : want[l.out + i * 256 + b]);
        for (size_t h = 0; h < 4; h++) {
            size_t at = 4 * (4 * i + h);
            assert_int_equal(le_get32(out + l.lse + at),
                             i == 1 ? 0xff800000 : le_get32(want + l.lse + at)); // -infinity
            assert_int_equal(le_get32(out + l.captured + at),
                             i == 1 ? 0 : le_get32(want + l.captured + at));
        }
    }
    rig_close(&rig);
}

static void a_dead_drive_is_named_and_harms_nobody_else(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(4, 2, 2, 16); // groups {1, 3} and {2, 4}
    rig_open(&rig, &o);
    assert_int_equal(rig_write_all(&rig, 0, 0, 40), 0);
    assert_int_equal(rig_write_all(&rig, 1, 0, 40), 0);
    struct gate_plan dead = {.dead = true};
    rig_gate(&rig, 3, &dead);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_write(&rig, rig.array, 1, 0, 40, 4, 0, 2), INST_EIO);
        assert_non_null(strstr(rig.msg.text, "drive 4 of 4 (d)"));
    }
    struct rig_query query[] = {{0, 40, true}};
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        assert_int_equal(rig_expect_attention(&rig, layer, query, 1), 0);
    rig_expect_tokens(&rig, 0, 1, 0, 41);
    // A batch of both: the command fails, and gives up the tickets that others have taken.
    struct rig_query both[] = {{0, 41, true}, {1, 40, true}};
    alignas(64) static unsigned char table[1024], data[1 << 14];
    for (int i = 0; i < 100; i++) {
        size_t bytes;
        struct command c = rig_attend_command(&rig, 0, both, 2, table, data, &bytes);
        assert_int_equal(rig_array(&rig, c, table, data), INST_EIO);
    }
    query[0].pos = 41;
    assert_int_equal(rig_expect_attention(&rig, 0, query, 1), 0);
    rig_close(&rig);
}

static void short_of_memory(void **state)
{
    (void)state;
    struct rig rig;
    struct rig_options o = options(3, 4, 2, 16);
    struct trace before[DRIVES_MOST];
    alignas(64) static unsigned char table[8192], data[1 << 16];
    struct rig_query query[64];
    size_t bytes;
    rig_open(&rig, &o);
    for (uint32_t i = 0; i < 64; i++)
        query[i] = (struct rig_query){i % 5, 0, true};
    look(&rig, before);
    rig.budget.limit = rig.budget.used + 64;
    struct command c = rig_attend_command(&rig, 0, query, 64, table, data, &bytes);
    assert_int_equal(rig_array(&rig, c, table, data), INST_ENOMEM);
    expect_no_trace(&rig, before);
    rig.budget.limit = UINT64_MAX;
    assert_int_equal(rig_expect_attention(&rig, 0, query, 5), 0);
    // What link_array_bytes says is enough, however it is used.
    uint64_t most;
    assert_true(link_array_bytes(3, 64, &o.config, &most));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < 64; i++)
            query[i] = (struct rig_query){i % 5, layer == 0, false};
        for (uint32_t n = layer ? 0 : 1; n < 64; n += 9)
            rig_expect_attention(&rig, layer, query, n + 1);
    }
    assert_true(rig.budget.peak <= most);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_are_a_partition),
        cmocka_unit_test(every_number_of_drives_gives_the_bits_of_one),
        cmocka_unit_test(sparf_too),
        cmocka_unit_test(several_items_and_parts_of_the_heads),
        cmocka_unit_test(writes_that_one_drive_refuses),
        cmocka_unit_test(attends_that_one_drive_refuses),
        cmocka_unit_test(forks_and_spaces_that_one_drive_refuses),
        cmocka_unit_test(malformed_commands_leave_no_trace),
        cmocka_unit_test(commands_go_to_all_before_any_is_waited_for),
        cmocka_unit_test(a_drive_without_an_answer),
        cmocka_unit_test(tickets_are_one_drives),
        cmocka_unit_test(an_item_that_fails_on_one_drive_fails),
        cmocka_unit_test(a_dead_drive_is_named_and_harms_nobody_else),
        cmocka_unit_test(short_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
