// SPDX-License-Identifier: Apache-2.0
// Emulated NAND as a flash: how it is asked for, time that is handed in, wear that fails programs
// and erases and has pages read again, by the documented rules. What holds of any flash is in
// flash_conformance.c.
#include "flash_harness.h"

#include "drive/flash/nand_flash.h"

#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096, PAGES = 16, UNITS = 4 };

static const struct nand_profile profile = {
    .time = {.channels = 2,
             .dies = 2,
             .planes = 1,
             .page_bytes = PAGE,
             .pages_per_block = PAGES,
             .read_ns = 50000,
             .program_ns = 500000,
             .erase_ns = 3000000,
             .command_ns = 100,
             .bus = 4096000000,
             .registers = 2},
    .size_bytes = 64 * UNITS * PAGES * PAGE,
    .has_wear = true,
    .wear = {.endurance = 100},
};

static struct flash *open_nand(const struct flash_nand_options *o)
{
    struct flash *flash = NULL;
    struct flash_geometry g;
    struct inst_msg msg = {0};
    if (nand_profile_geometry(&o->profile, 0, &g, &msg) ||
        flash_nand_open(&flash, o, &g, NULL, &msg))
        fail_msg("%s", msg.text);
    return flash;
}

// By the flash's own account of time: goes on to what it says and nowhere else.
static int call(struct flash *flash, enum flash_op op, uint64_t block, uint32_t page, void *data,
                uint64_t *now)
{
    struct flash_io *done, io = {.op = op, .block = block, .page = page, .pages = 1, .data = data};
    flash->ops->submit(flash, &io, *now);
    while (!(done = flash->ops->poll(flash, *now))) {
        uint64_t next = flash->ops->next_ns(flash);
        assert_true(next != UINT64_MAX && next > *now);
        *now = next;
    }
    assert_ptr_equal(done, &io);
    assert_true(io.done_ns <= *now);
    assert_true(flash->ops->next_ns(flash) == UINT64_MAX);
    return io.status;
}

static void test_time(void **state)
{
    (void)state;
    struct flash_nand_options o = {.profile = profile};
    struct flash *flash = open_nand(&o);
    unsigned char *page = pages_new(PAGE);
    uint64_t now = 1000;
    page_fill(page, PAGE, 7);
    assert_int_equal(call(flash, FLASH_PROGRAM, 0, 0, page, &now), 0);
    assert_int_equal(now, 1000 + 100 + 1000 + 500000);
    memset(page, 0, PAGE);
    assert_int_equal(call(flash, FLASH_READ, 0, 0, page, &now), 0);
    assert_int_equal(now, 502100 + 51100);
    assert_true(page_is(page, PAGE, 7));
    assert_int_equal(call(flash, FLASH_ERASE, 0, 0, NULL, &now), 0);
    assert_int_equal(now, 553200 + 3000100);
    // What no device begins takes no time.
    uint64_t before = now;
    assert_int_equal(call(flash, FLASH_READ, 0, 0, page, &now), INST_EINVAL);
    assert_int_equal(call(flash, FLASH_SYNC, 0, 0, NULL, &now), 0);
    assert_int_equal(now, before);
    struct flash_nand_counters c;
    flash_nand_counters(flash, &c);
    assert_int_equal(c.busy_ns, now - 1000);
    assert_int_equal(c.read_pages, 1);
    flash_close(flash);
    // Without payload the times are the same.
    o.payload = NAND_PAYLOAD_NONE;
    flash = open_nand(&o);
    assert_true(flash->geometry.no_data);
    now = 1000;
    assert_int_equal(call(flash, FLASH_PROGRAM, 0, 0, page, &now), 0);
    assert_int_equal(call(flash, FLASH_READ, 0, 0, page, &now), 0);
    assert_int_equal(now, 502100 + 51100);
    flash_close(flash);
    // Held back to the real time.
    o.payload = NAND_PAYLOAD_RAM;
    flash = open_nand(&o);
    now = clock_ns();
    assert_int_equal(run_one(flash, FLASH_PROGRAM, 0, 0, 1, page), 0);
    assert_true(clock_ns() - now >= 501100);
    flash_close(flash);
    free(page);
}

// Erases and programs a block until something fails; how many erases went well.
static unsigned wear_out(struct flash *flash, uint64_t block, unsigned most, unsigned char *page,
                         int *program, int *erase)
{
    uint64_t now = 0;
    for (unsigned n = 0; n < most; n++) {
        *program = call(flash, FLASH_PROGRAM, block, 0, page, &now);
        *erase = call(flash, FLASH_ERASE, block, 0, NULL, &now);
        if (*program || *erase)
            return n;
    }
    return most;
}

static void test_grown_bad(void **state)
{
    (void)state;
    // Half of the blocks go bad within 100 erases, all within 200; a plane has 7 spares of 64.
    struct flash_nand_options o = {.profile = profile, .seed = 3};
    o.profile.wear.grown_bad = 0.5;
    o.profile.wear.spare_blocks = 0.1;
    struct flash *flash = open_nand(&o);
    unsigned char *page = pages_new(PAGE);
    unsigned early = 0, life[16], replaced = 0, lost = 0;
    int program, erase;
    for (uint64_t i = 0; i < 16; i++) {
        life[i] = wear_out(flash, i * UNITS, 250, page, &program, &erase);
        assert_true(life[i] < 200);
        assert_int_equal(program, INST_EIO);
        early += life[i] < 100;
        replaced += erase == 0;
        lost += erase == INST_EIO;
        if (erase) { // and so it stays: nothing can be written there any more
            uint64_t now = 0;
            assert_int_equal(call(flash, FLASH_PROGRAM, i * UNITS, 0, page, &now), INST_EINVAL);
            assert_int_equal(call(flash, FLASH_ERASE, i * UNITS, 0, NULL, &now), INST_EIO);
        } else {
            uint64_t now = 0;
            assert_int_equal(call(flash, FLASH_PROGRAM, i * UNITS, 0, page, &now), 0);
        }
    }
    assert_true(early >= 4 && early <= 12);
    assert_int_equal(replaced, 7);
    assert_int_equal(lost, 9);
    struct flash_nand_counters c;
    flash_nand_counters(flash, &c);
    assert_int_equal(c.grown_bad, 16);
    assert_int_equal(c.lost_blocks, 9);
    assert_int_equal(c.failed_programs, 16);
    assert_int_equal(c.failed_erases, 18);
    flash_close(flash);
    // The same seed, the same fate; with erases behind it, so many fewer.
    o.erases = 50;
    flash = open_nand(&o);
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(wear_out(flash, i * UNITS, 250, page, &program, &erase),
                         life[i] < 50 ? 0 : life[i] - 50);
    flash_close(flash);
    o.no_bad = true;
    flash = open_nand(&o);
    assert_int_equal(wear_out(flash, 0, 250, page, &program, &erase), 250);
    flash_close(flash);
    free(page);
}

static void test_bad_from_the_beginning(void **state)
{
    (void)state;
    struct flash_nand_options o = {.profile = profile, .seed = 1};
    o.profile.wear.bad_blocks = o.profile.wear.spare_blocks = 0.25;
    struct flash *flash = open_nand(&o);
    unsigned char *page = pages_new(PAGE);
    struct flash_nand_counters c;
    flash_nand_counters(flash, &c);
    assert_true(c.bad_blocks > 40 && c.bad_blocks < 88); // of 256
    uint64_t works = 0, now = 0;
    for (uint64_t b = 0; b < flash->geometry.blocks; b++)
        works += call(flash, FLASH_PROGRAM, b, 0, page, &now) == 0;
    // All but those for which a plane has no spare.
    assert_int_equal(works, 256 - c.lost_blocks);
    assert_true(c.lost_blocks < 16);
    flash_close(flash);
    free(page);
}

static void test_retries(void **state)
{
    (void)state;
    const uint64_t day = UINT64_C(86400000000000);
    struct nand_wear_options o = {.params = {.endurance = 100,
                                             .retries_fresh = 0.25,
                                             .retries_worn = 1,
                                             .retries_aged = 2,
                                             .retention_ns = 30 * day},
                                  .seed = 5};
    const struct {
        uint64_t erases, age_days;
        double mean;
    } cases[] = {{0, 0, 0.25}, {50, 0, 0.75}, {0, 15, 1.25}, {100, 30, 3.25}, {100, 3000, 15}};
    struct flash_geometry g;
    assert_int_equal(nand_profile_geometry(&profile, 0, &g, NULL), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nand_wear w;
        o.erases = cases[i].erases;
        o.age_ns = cases[i].age_days * day;
        assert_int_equal(nand_wear_init(&w, &o, &g, NULL), 0);
        double sum = 0, n = 0;
        for (uint64_t b = 0; b < g.blocks; b++)
            for (uint32_t p = 0; p < PAGES; p++, n++) {
                uint32_t times = nand_wear_retries(&w, b, p, 0);
                assert_int_equal(times, nand_wear_retries(&w, b, p, 0));
                assert_true(times == (uint32_t)cases[i].mean ||
                            times == (uint32_t)cases[i].mean + 1);
                sum += times;
            }
        assert_true(sum / n > cases[i].mean - 0.03 && sum / n < cases[i].mean + 0.03);
        // Data that is programmed later is younger.
        assert_int_equal(nand_wear_program(&w, 0, true, 1000 * day), 0);
        assert_true(nand_wear_retries(&w, 1, 0, 1000 * day) >
                        nand_wear_retries(&w, 0, 0, 1000 * day) ||
                    cases[i].mean == 15);
        w.o.no_retries = true;
        assert_int_equal(nand_wear_retries(&w, 1, 0, 1000 * day), 0);
        nand_wear_free(&w);
    }
}

// What ECC does not get right after as many retries as there may be is lost, and takes their time.
static void test_lost(void **state)
{
    (void)state;
    const uint64_t day = UINT64_C(86400000000000);
    struct flash_nand_options o = {.profile = profile};
    o.profile.wear.retries_aged = 1;
    o.profile.wear.retention_ns = 30 * day;
    o.profile.wear.retries_most = 2;
    struct flash *flash = open_nand(&o);
    unsigned char *page = pages_new(PAGE);
    uint64_t now = 0;
    assert_int_equal(call(flash, FLASH_PROGRAM, 0, 0, page, &now), 0);
    now += 60 * day; // two or three times, by its hash: as much, or more than there may be
    uint64_t start = now;
    int status = call(flash, FLASH_READ, 0, 0, page, &now);
    assert_int_equal(now - start, 100 + 3 * 50000 + 3 * 1000);
    now += 30 * day;
    start = now;
    assert_int_equal(call(flash, FLASH_READ, 0, 0, page, &now), INST_EIO);
    assert_int_equal(now - start, 100 + 3 * 50000 + 3 * 1000);
    struct flash_nand_counters c;
    flash_nand_counters(flash, &c);
    assert_int_equal(c.failed_reads, 1 + (status != 0));
    // Erased and programmed again it is new.
    assert_int_equal(call(flash, FLASH_ERASE, 0, 0, NULL, &now), 0);
    assert_int_equal(call(flash, FLASH_PROGRAM, 0, 0, page, &now), 0);
    assert_int_equal(call(flash, FLASH_READ, 0, 0, page, &now), 0);
    flash_close(flash);
    free(page);
}

static void test_parse(void **state)
{
    (void)state;
    struct flash_nand_options o;
    struct inst_msg msg = {0};
    assert_int_equal(flash_nand_parse(&o, "instcsd-zynq7045", &msg), 0);
    assert_true(!o.size_bytes && o.payload == NAND_PAYLOAD_RAM && !o.paced && !o.no_bad);
    assert_int_equal(o.seed, 1);
    assert_int_equal(o.profile.time.channels, 8);
    assert_int_equal(flash_nand_parse(&o,
                                      "ssd-980pro:4G,payload=file:/tmp/x:y,clock=paced,bad=off,"
                                      "retries=off,wear=500,age=30,seed=7",
                                      &msg),
                     0);
    assert_int_equal(o.size_bytes, UINT64_C(4) << 30);
    assert_string_equal(o.directory, "/tmp/x:y");
    assert_string_equal(o.name, "ssd-980pro");
    assert_true(o.paced && o.no_bad && o.no_retries && o.payload == NAND_PAYLOAD_FILE);
    assert_int_equal(o.erases, 500);
    assert_int_equal(o.age_ns, 30 * UINT64_C(86400000000000));
    assert_int_equal(o.seed, 7);
    assert_int_equal(
        flash_nand_parse(&o, INST_SOURCE_DIR "/profiles/smartssd.profile,payload=none", &msg), 0);
    assert_int_equal(o.payload, NAND_PAYLOAD_NONE);
    static const struct {
        const char *text, *message;
    } wrong[] = {
        {"", "'' is not PROFILE[:SIZE]"},
        {"nothing", "no profile 'nothing': there are "},
        {"smartssd:", "'smartssd:' is not PROFILE"},
        {"smartssd:1X", "'smartssd:1X' is not PROFILE"},
        {"smartssd:1M", "one block of each of 128 planes are"},
        {"smartssd,", "'' is none of [,payload="},
        {"smartssd,payload", "'payload' is none of"},
        {"smartssd,payload=disk", "'payload=disk' is none of"},
        {"smartssd,payload=file:", "'payload=file:' is none of"},
        {"smartssd,clock=fast", "'clock=fast' is none of"},
        {"smartssd,bad=no,clock=paced", "'bad=no' is none of"},
        {"smartssd,wear=-1", "'wear=-1' is none of"},
        {"smartssd,wear=9999999", "'wear=9999999' is none of"},
        {"smartssd,age=", "'age=' is none of"},
        {"./no.profile", "./no.profile: No such file or directory"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        msg.text[0] = 0;
        assert_true(flash_nand_parse(&o, wrong[i].text, &msg) < 0);
        if (!strstr(msg.text, wrong[i].message))
            fail_msg("%s: %s", wrong[i].text, msg.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_grown_bad),
        cmocka_unit_test(test_bad_from_the_beginning),
        cmocka_unit_test(test_retries),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_parse),
    };
    return cmocka_run_group_tests_name("nand_flash", tests, NULL, NULL);
}
