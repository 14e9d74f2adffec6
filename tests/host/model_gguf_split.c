// SPDX-License-Identifier: Apache-2.0
// Models in several files: a model split here, one split by llama.cpp's tool where INST_GGUF_SPLIT
// names it, and every way in which parts can disagree, each with its error line.
#include "host/model/config.h"
#include "tests/host/model_build.h"
#include "tests/needs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

enum { PARTS = 3, TENSORS = 7 };

static char folder[64];

// What one part says of itself, and what it has.
struct part {
    const char *file;             // NULL = the regular name
    int no, count, tensors_count; // -1 = no such key
    int first, tensors;           // tensors [first, first + tensors)
    bool absent, cut;
};

static void tensor_name(int i, char *out, size_t room)
{
    snprintf(out, room, "tensor.%d", i);
}

static void write_part(const struct part *p, int index)
{
    struct build b;
    char path[128], name[32];
    build_begin(&b);
    if (!index)
        build_key_string(&b, "general.name", "split");
    if (p->no >= 0)
        build_key_u32(&b, "split.no", (uint32_t)p->no);
    if (p->count >= 0)
        build_key_u32(&b, "split.count", (uint32_t)p->count);
    if (p->tensors_count >= 0)
        build_key_u32(&b, "split.tensors.count", (uint32_t)p->tensors_count);
    le_put64(b.data + 8, (uint64_t)p->tensors);
    for (int i = 0; i < p->tensors; i++) {
        tensor_name(p->first + i, name, sizeof name);
        build_string(&b, name, strlen(name));
        build_u32(&b, 1);
        build_u64(&b, 8);
        build_u32(&b, 0); // F32
        build_u64(&b, (uint64_t)i * 32);
    }
    while (b.bytes % 32)
        build_put(&b, "", 1);
    for (int i = 0; i < p->tensors; i++)
        for (int j = 0; j < 8; j++) {
            float value = (float)(100 * (p->first + i) + j);
            build_put(&b, &value, 4);
        }
    snprintf(path, sizeof path, "%s/m-%05d-of-%05d.gguf", folder, index + 1, PARTS);
    if (p->file)
        snprintf(path, sizeof path, "%s/%s", folder, p->file);
    remove(path);
    if (!p->absent) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(b.data, 1, b.bytes - (p->cut ? 5 : 0), f),
                         b.bytes - (p->cut ? 5 : 0));
        fclose(f);
    }
    free(b.data);
}

static const struct part good[PARTS] = {
    {NULL, 0, 3, TENSORS, 0, 3, false, false},
    {NULL, 1, 3, TENSORS, 3, 0, false, false}, // a part may have no tensors
    {NULL, 2, 3, TENSORS, 3, 4, false, false},
};

static void write_parts(const struct part *parts)
{
    for (int i = 0; i < PARTS; i++)
        write_part(&parts[i], i);
}

// The same read into memory, of which there are `room` bytes; what is left of it.
static int read_first(const char *name, uint64_t *room, struct gguf **g, struct budget *budget,
                      struct inst_msg *msg)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    budget_init(budget, 1 << 20);
    msg->text[0] = 0;
    return gguf_open_read(g, path, room, budget, msg);
}

static int open_first(const char *name, struct gguf **g, struct budget *budget,
                      struct inst_msg *msg)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    budget_init(budget, 1 << 20);
    msg->text[0] = 0;
    return gguf_open(g, path, budget, msg);
}

static void test_whole(void **state)
{
    (void)state;
    struct gguf *g;
    struct budget budget;
    struct inst_msg msg;
    write_parts(good);
    if (open_first("m-00001-of-00003.gguf", &g, &budget, &msg))
        fail_msg("%s", msg.text);
    assert_string_equal(gguf_name(g), "m-00001-of-00003.gguf");
    assert_int_equal(gguf_tensor_count(g), TENSORS);
    assert_true(gguf_bytes(g) > TENSORS * 32 + 3 * 24);
    for (int i = 0; i < TENSORS; i++) {
        char name[32];
        tensor_name(i, name, sizeof name);
        const struct gguf_tensor *t = gguf_tensor(g, name);
        assert_non_null(t);
        assert_ptr_equal(t, gguf_tensor_at(g, (uint64_t)i));
        for (int j = 0; j < 8; j++)
            assert_true(((const float *)t->data)[j] == (float)(100 * i + j));
    }
    assert_null(gguf_tensor(g, "tensor.7"));
    // Messages name the file that the tensor is in.
    gguf_fail_tensor(g, gguf_tensor_at(g, 1), -1, &msg, "x");
    assert_non_null(strstr(msg.text, "m-00001-of-00003.gguf: tensor 'tensor.1' at offset"));
    msg.text[0] = 0;
    gguf_fail_tensor(g, gguf_tensor_at(g, 5), -1, &msg, "x");
    assert_non_null(strstr(msg.text, "m-00003-of-00003.gguf: tensor 'tensor.5' at offset"));
    gguf_close(g);
    assert_int_equal(budget.used, 0);
}

// Read, parts are what they are mapped; what there is no memory for is told before it is taken.
static void test_read(void **state)
{
    (void)state;
    const char *name = "m-00001-of-00003.gguf";
    struct gguf *g, *mapped;
    struct budget budget, other;
    struct inst_msg msg;
    write_parts(good);
    assert_int_equal(open_first(name, &mapped, &other, &msg), 0);
    uint64_t bytes = gguf_bytes(mapped), room = bytes + 5;
    if (read_first(name, &room, &g, &budget, &msg))
        fail_msg("%s", msg.text);
    assert_int_equal(room, 5);
    assert_int_equal(gguf_tensor_count(g), TENSORS);
    for (uint64_t i = 0; i < TENSORS; i++) {
        const struct gguf_tensor *a = gguf_tensor_at(g, i), *b = gguf_tensor_at(mapped, i);
        assert_int_equal(a->bytes, b->bytes);
        assert_ptr_not_equal(a->data, b->data);
        assert_memory_equal(a->data, b->data, a->bytes);
    }
    assert_int_equal(budget.peak, other.peak); // memory of the file is none of the budget's
    gguf_close(mapped);
    gguf_close(g);
    room = bytes - 1;
    assert_int_equal(read_first(name, &room, &g, &budget, &msg), INST_ENOMEM);
    assert_non_null(strstr(msg.text, "m-00003-of-00003.gguf: "));
    assert_non_null(strstr(msg.text, " do not fit into the memory that is available, "));
    assert_null(g);
    assert_int_equal(budget.used, 0);
}

static void test_wrong(void **state)
{
    (void)state;
    static const struct {
        int index;
        struct part part;
        int code;
        const char *line; // FOLDER stands for the folder
    } cases[] = {
        {1,
         {NULL, 1, 3, TENSORS, 3, 0, true, false},
         INST_ENOENT,
         "m-00001-of-00003.gguf: part 2 of 3 is missing: no file FOLDER/m-00002-of-00003.gguf"},
        {2,
         {NULL, 1, 3, TENSORS, 3, 4, false, false},
         INST_EFORMAT,
         "m-00003-of-00003.gguf: key 'split.no' at offset 24: part 2 where part 3 of 3 belongs"},
        {2,
         {NULL, -1, 3, TENSORS, 3, 4, false, false},
         INST_EFORMAT,
         "m-00003-of-00003.gguf: key 'split.no' is missing"},
        {1,
         {NULL, 1, 4, TENSORS, 3, 0, false, false},
         INST_EFORMAT,
         "m-00002-of-00003.gguf: part 2 of 3 says that there are 4 parts"},
        {1,
         {NULL, 1, -1, TENSORS, 3, 0, false, false},
         INST_EFORMAT,
         "m-00002-of-00003.gguf: part 2 of 3 says that there are 1 parts"},
        {1,
         {NULL, 1, 3, 8, 3, 0, false, false},
         INST_EFORMAT,
         "m-00002-of-00003.gguf: key 'split.tensors.count' at offset 75: 8 tensors in all, but "
         "part 1 says 7"},
        {2,
         {NULL, 2, 3, TENSORS, 3, 3, false, false},
         INST_EFORMAT,
         "m-00001-of-00003.gguf: key 'split.tensors.count' at offset 112: 7 tensors in all, but "
         "its 3 parts have 6"},
        {2,
         {NULL, 2, 3, TENSORS, 2, 4, false, false},
         INST_EFORMAT,
         "m-00003-of-00003.gguf: tensor 'tensor.2' at offset 110: the tensor is there twice"},
        {2,
         {NULL, 2, 3, TENSORS, 3, 4, false, true},
         INST_EFORMAT,
         "m-00003-of-00003.gguf: tensor 'tensor.6' at offset 230: 32 bytes of data at data offset "
         "96 reach beyond the end of the file (411 bytes)"},
        {0,
         {NULL, 1, 3, TENSORS, 0, 3, false, false},
         INST_EFORMAT,
         "m-00001-of-00003.gguf: key 'split.no' at offset 61: part 2: open part 1 of 3"},
        {0,
         {NULL, 0, 2, TENSORS, 0, 3, false, false},
         INST_EFORMAT,
         "m-00001-of-00003.gguf: key 'split.count' at offset 85: one of 2 parts, but not named "
         "NAME-00001-of-00002.gguf"},
        {0,
         {NULL, 0, 70000, TENSORS, 0, 3, false, false},
         INST_EFORMAT,
         "m-00001-of-00003.gguf: key 'split.count' at offset 85: 70000 is out of range (0 to "
         "65535)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct part parts[PARTS];
        struct gguf *g;
        struct budget budget;
        struct inst_msg msg;
        char want[256] = "", *at;
        memcpy(parts, good, sizeof parts);
        parts[cases[i].index] = cases[i].part;
        write_parts(parts);
        int rc = open_first("m-00001-of-00003.gguf", &g, &budget, &msg);
        snprintf(want, sizeof want, "%s", cases[i].line);
        if ((at = strstr(want, "FOLDER")))
            snprintf(at, sizeof want - (size_t)(at - want), "%s%s", folder,
                     strstr(cases[i].line, "FOLDER") + 6);
        assert_string_equal(msg.text, want);
        assert_int_equal(rc, cases[i].code);
        assert_null(g);
        assert_int_equal(budget.used, 0);
    }
}

static void test_other_parts(void **state)
{
    (void)state;
    struct gguf *g;
    struct budget budget;
    struct inst_msg msg;
    write_parts(good);
    assert_int_equal(open_first("m-00002-of-00003.gguf", &g, &budget, &msg), INST_EFORMAT);
    assert_non_null(strstr(msg.text, "part 2: open part 1 of 3"));
    // A single file may say that it is one of one.
    struct part alone = {"alone.gguf", 0, 1, 3, 0, 3, false, false};
    write_part(&alone, 0);
    assert_int_equal(open_first("alone.gguf", &g, &budget, &msg), 0);
    assert_int_equal(gguf_tensor_count(g), 3);
    gguf_close(g);
    // In memory there is no way to the others.
    struct build b;
    build_begin(&b);
    build_key_u32(&b, "split.count", 2);
    assert_int_equal(gguf_open_memory(&g, b.data, b.bytes, "bytes", &budget, &msg), INST_ENOTSUP);
    assert_string_equal(msg.text, "bytes: key 'split.count' at offset 24: one of 2 parts, and no "
                                  "way to the others");
    assert_null(g);
    free(b.data);
    assert_int_equal(budget.used, 0);
    // Little memory: an error wherever it gives out.
    int refused = 0;
    for (uint64_t limit = 0; limit < 12 << 10; limit += 256) {
        char path[128];
        snprintf(path, sizeof path, "%s/m-00001-of-00003.gguf", folder);
        budget_init(&budget, limit);
        int rc = gguf_open(&g, path, &budget, &msg);
        assert_true(rc == 0 || rc == INST_ENOMEM);
        refused += rc != 0;
        gguf_close(g);
        assert_int_equal(budget.used, 0);
    }
    assert_true(refused > 3 && refused < 48);
}

// The same tensors as the whole file, byte for byte.
static void test_foreign(void **state)
{
    (void)state;
    const char *tool = getenv("INST_GGUF_SPLIT");
    static const char whole[] = INST_SOURCE_DIR "/models/stories260K.gguf";
    char command[512];
    struct gguf *a, *b;
    struct budget budget;
    struct inst_msg msg = {{0}};
    if (!tool)
        leave_out("parts written by llama.cpp's gguf-split (INST_GGUF_SPLIT names one)");
    snprintf(command, sizeof command, "%s --split-max-tensors 20 %s %s/f > %s/log 2>&1", tool,
             whole, folder, folder);
    assert_int_equal(system(command), 0);
    for (int count = 2; count < 10; count++) {
        char name[64];
        snprintf(name, sizeof name, "f-00001-of-%05d.gguf", count);
        if (open_first(name, &b, &budget, &msg))
            continue;
        assert_int_equal(gguf_open(&a, whole, &budget, &msg), 0);
        assert_int_equal(gguf_tensor_count(a), gguf_tensor_count(b));
        for (uint64_t i = 0; i < gguf_tensor_count(a); i++) {
            const struct gguf_tensor *x = gguf_tensor_at(a, i);
            char text[128];
            snprintf(text, sizeof text, "%.*s", (int)x->name.bytes, x->name.data);
            const struct gguf_tensor *y = gguf_tensor(b, text);
            assert_non_null(y);
            assert_int_equal(x->bytes, y->bytes);
            assert_memory_equal(x->data, y->data, x->bytes);
        }
        struct model_config config;
        assert_int_equal(model_config_read(b, &config, &msg), 0);
        print_message("%d parts\n", count);
        gguf_close(a);
        gguf_close(b);
        assert_int_equal(budget.used, 0);
        return;
    }
    fail_msg("%s", msg.text);
}

static void test_names(void **state)
{
    (void)state;
    char name[64];
    const char *three = "a/m-00002-of-00003.gguf";
    assert_true(gguf_part_path(three, 0, name, sizeof name));
    assert_string_equal(name, "a/m-00001-of-00003.gguf");
    assert_true(gguf_part_path(three, 2, name, sizeof name));
    assert_string_equal(name, "a/m-00003-of-00003.gguf");
    assert_false(gguf_part_path(three, 3, name, sizeof name));
    assert_false(gguf_part_path(three, 0, name, strlen(three)));
    assert_true(gguf_part_path(three, 0, name, strlen(three) + 1));
    const char *other[] = {"",
                           "m.gguf",
                           "-00001-of-00003.gguf",
                           "m-0001-of-00003.gguf",
                           "m-00001-of-0000x.gguf",
                           "m-00001-of-00003.GGUF",
                           "m-00001-of-00003.gguf.old",
                           "m-00001-of-00000.gguf"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        assert_false(gguf_part_path(other[i], 0, name, sizeof name));
}

int main(void)
{
    char command[128];
    snprintf(folder, sizeof folder, "/tmp/inst-split-XXXXXX");
    if (!mkdtemp(folder))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),   cmocka_unit_test(test_read),
        cmocka_unit_test(test_wrong),   cmocka_unit_test(test_other_parts),
        cmocka_unit_test(test_foreign), cmocka_unit_test(test_names),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) ? 1 : rc;
}
