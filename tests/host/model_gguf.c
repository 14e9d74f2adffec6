// SPDX-License-Identifier: Apache-2.0
// Reading what is written: values of every type, getters with their ranges, lookups among very many
// names, big string arrays, and that weights are not copied.
#include "host/model/gguf.h"
#include "host/model/gguf_write.h"
#include "kernels/tensor_type.h"
#include "tests/host/model_build.h"
#include "tests/processor_time.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

static struct gguf *open_bytes(struct build *b, struct budget *budget)
{
    struct gguf *gguf;
    struct inst_msg msg = {{0}};
    if (gguf_open_memory(&gguf, b->data, b->bytes, "test", budget, &msg))
        fail_msg("%s", msg.text);
    return gguf;
}

static void put_number(struct build *b, const char *name, uint32_t type, const void *p, size_t n)
{
    build_key(b, name, type);
    build_put(b, p, n);
}

static void test_integers(void **state)
{
    (void)state;
    struct build b;
    struct budget budget;
    struct inst_msg msg = {{0}};
    uint64_t v = 0;
    uint32_t small = 9;
    budget_init(&budget, 1 << 20);
    build_begin(&b);
    put_number(&b, "u8", GGUF_U8, "\xff", 1);
    put_number(&b, "i8", GGUF_I8, "\xff", 1);
    put_number(&b, "u16", GGUF_U16, "\xfe\xff", 2);
    put_number(&b, "i16", GGUF_I16, "\x00\x80", 2);
    put_number(&b, "u64", GGUF_U64, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    put_number(&b, "i64min", GGUF_I64, "\0\0\0\0\0\0\0\x80", 8);
    put_number(&b, "i32", GGUF_I32, "\x07\0\0\0", 4);
    build_key_array(&b, "same", GGUF_U16, 3);
    build_put(&b, "\5\0\5\0\5\0", 6);
    build_key_array(&b, "mixed", GGUF_U16, 3);
    build_put(&b, "\5\0\5\0\6\0", 6);
    struct gguf *g = open_bytes(&b, &budget);
    const struct {
        const char *key;
        uint64_t value;
    } good[] = {{"u8", 255}, {"u16", 65534}, {"u64", UINT64_MAX}, {"i32", 7}, {"same", 5}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(gguf_get_u64(g, good[i].key, GGUF_REQUIRED, 0, UINT64_MAX, &v, &msg), 0);
        assert_true(v == good[i].value);
    }
    const char *const negative[] = {"i8", "i16", "i64min"};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(gguf_get_u64(g, negative[i], GGUF_OPTIONAL, 0, UINT64_MAX, &v, NULL),
                         INST_EFORMAT);
    gguf_get_u64(g, "i64min", GGUF_OPTIONAL, 0, 5, &v, &msg);
    assert_non_null(strstr(msg.text, "-9223372036854775808 is out of range (0 to 5)"));
    assert_int_equal(gguf_get_u64(g, "mixed", GGUF_OPTIONAL, 0, 9, &v, NULL), INST_ENOTSUP);
    // The default stays where the key is absent or wrong.
    assert_int_equal(gguf_get_u32(g, "none", GGUF_OPTIONAL, 0, 5, &small, NULL), 0);
    assert_int_equal(gguf_get_u32(g, "u64", GGUF_OPTIONAL, 0, UINT32_MAX, &small, NULL),
                     INST_EFORMAT);
    assert_int_equal(small, 9);
    memset(&msg, 0, sizeof msg);
    assert_int_equal(gguf_get_u32(g, "none", GGUF_REQUIRED, 0, 5, &small, &msg), INST_EFORMAT);
    assert_string_equal(msg.text, "test: key 'none' is missing");
    assert_int_equal(gguf_get_u32(g, "i32", GGUF_REQUIRED, 7, 7, &small, NULL), 0);
    assert_int_equal(gguf_get_u32(g, "i32", GGUF_REQUIRED, 8, 9, &small, NULL), INST_EFORMAT);
    gguf_close(g);
    assert_int_equal(budget.used, 0);
    free(b.data);
}

static void test_other_values(void **state)
{
    (void)state;
    struct build b;
    struct budget budget;
    struct inst_msg msg = {{0}};
    float f = 0, pi = 3.25f, inf = INFINITY;
    double d = -2.5;
    bool flag = false;
    struct gguf_string s;
    const struct gguf_key *array;
    budget_init(&budget, 1 << 20);
    build_begin(&b);
    put_number(&b, "f32", GGUF_F32, &pi, 4);
    put_number(&b, "f64", GGUF_F64, &d, 8);
    put_number(&b, "inf", GGUF_F32, &inf, 4);
    build_key_bool(&b, "yes", true);
    build_key_string(&b, "text", "h\xc3\xa4llo");
    build_key_array(&b, "strings", GGUF_STRING, 3);
    build_string(&b, "one", 3);
    build_string(&b, "", 0);
    build_string(&b, "three", 5);
    build_key_array(&b, "empty", GGUF_STRING, 0);
    struct gguf *g = open_bytes(&b, &budget);
    assert_int_equal(gguf_get_f32(g, "f32", GGUF_REQUIRED, 0, 4, &f, &msg), 0);
    assert_true(f == 3.25f);
    assert_int_equal(gguf_get_f32(g, "f64", GGUF_REQUIRED, -4, 4, &f, &msg), 0);
    assert_true(f == -2.5f);
    assert_int_equal(gguf_get_f32(g, "f64", GGUF_REQUIRED, 0, 4, &f, NULL), INST_EFORMAT);
    assert_int_equal(gguf_get_f32(g, "inf", GGUF_REQUIRED, 0, 4, &f, NULL), INST_EFORMAT);
    assert_int_equal(gguf_get_f32(g, "yes", GGUF_REQUIRED, 0, 4, &f, NULL), INST_EFORMAT);
    assert_int_equal(gguf_get_bool(g, "yes", GGUF_REQUIRED, &flag, &msg), 0);
    assert_true(flag);
    assert_int_equal(gguf_get_bool(g, "f32", GGUF_REQUIRED, &flag, NULL), INST_EFORMAT);
    assert_int_equal(gguf_get_string(g, "text", GGUF_REQUIRED, &s, &msg), 0);
    assert_true(gguf_string_is(s, "h\xc3\xa4llo"));
    assert_int_equal(gguf_get_string(g, "yes", GGUF_REQUIRED, &s, NULL), INST_EFORMAT);
    assert_int_equal(gguf_get_array(g, "strings", GGUF_REQUIRED, GGUF_STRING, &array, &msg), 0);
    assert_int_equal(array->count, 3);
    uint64_t at = 0;
    assert_true(gguf_string_is(gguf_next_string(array, &at), "one"));
    assert_true(gguf_string_is(gguf_next_string(array, &at), ""));
    assert_true(gguf_string_is(gguf_next_string(array, &at), "three"));
    assert_int_equal(at, array->bytes);
    assert_int_equal(gguf_get_array(g, "strings", GGUF_REQUIRED, GGUF_U8, &array, NULL),
                     INST_EFORMAT);
    assert_int_equal(gguf_get_array(g, "none", GGUF_OPTIONAL, GGUF_U8, &array, NULL), 0);
    assert_null(array);
    assert_null(gguf_find(g, "tex"));
    assert_null(gguf_tensor(g, "text"));
    gguf_close(g);
    free(b.data);
}

// 200,000 keys, an array of 256,000 strings and 100,000 tensors; each found again. Quadratic work
// would take minutes.
static void test_many(void **state)
{
    (void)state;
    enum { KEYS = 200000, STRINGS = 256000, TENSORS = 100000 };
    struct build b;
    struct budget budget;
    char name[32];
    budget_init(&budget, 64 << 20);
    build_begin(&b);
    build_key_array(&b, "strings", GGUF_STRING, STRINGS);
    for (int i = 0; i < STRINGS; i++)
        build_string(&b, name, (size_t)snprintf(name, sizeof name, "token %d", i));
    double start = processor_seconds();
    gguf_close(open_bytes(&b, &budget));
    double strings_only = processor_seconds() - start;
    for (uint32_t i = 0; i < KEYS; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        build_key_u32(&b, name, i);
    }
    for (uint64_t i = 0; i < TENSORS; i++) {
        build_string(&b, name, (size_t)snprintf(name, sizeof name, "t.%d", (int)i));
        build_u32(&b, 1);
        build_u64(&b, 2);
        build_u32(&b, TENSOR_F32);
        build_u64(&b, i * 32);
    }
    le_put64(b.data + 8, TENSORS);
    while (b.bytes % 32)
        build_put(&b, "", 1);
    size_t data = b.bytes;
    for (uint32_t i = 0; i < TENSORS; i++) {
        float values[8] = {(float)i, 1};
        build_put(&b, values, sizeof values);
    }
    start = processor_seconds();
    struct gguf *g = open_bytes(&b, &budget);
    double took = processor_seconds() - start;
    print_message("256k strings: %.1f ms; with 200k keys, 100k tensors: %.0f ms, index %.1f MiB\n",
                  1e3 * strings_only, 1e3 * took, (double)budget.peak / 1048576);
    assert_true(strings_only < 3 && took < 10); // generous: sanitizers
    for (uint32_t i = 0; i < KEYS; i += 7) {
        uint32_t value = 0;
        snprintf(name, sizeof name, "key.%u", i);
        assert_int_equal(gguf_get_u32(g, name, GGUF_REQUIRED, 0, KEYS, &value, NULL), 0);
        assert_int_equal(value, i);
    }
    for (uint32_t i = 0; i < TENSORS; i += 7) {
        snprintf(name, sizeof name, "t.%u", i);
        const struct gguf_tensor *t = gguf_tensor(g, name);
        assert_non_null(t);
        assert_ptr_equal(t->data, b.data + data + (size_t)i * 32);
        assert_int_equal(t->offset, data + (size_t)i * 32);
        assert_int_equal(t->bytes, 8);
        assert_true(((const float *)t->data)[0] == (float)i);
    }
    gguf_close(g);
    free(b.data);
}

// A file through the writer: version, alignment, quantised sizes, and RssFile instead of heap.
static void test_file(void **state)
{
    (void)state;
    const char *path = INST_BINARY_DIR "/model_gguf_test.gguf";
    struct gguf_writer *w;
    struct gguf *g;
    struct inst_msg msg = {{0}};
    struct budget budget;
    uint64_t dims[4] = {64, 5}, odd[4] = {3, 2, 2, 1};
    uint8_t block[340];
    float values[12];
    unlink(path);
    FILE *file = fopen(path, "wb");
    assert_int_equal(gguf_writer_open(&w, file, path, &msg), 0);
    gguf_writer_string(w, "general.architecture", "test");
    gguf_writer_tensor(w, "q", TENSOR_Q8_0, 2, dims);
    gguf_writer_tensor(w, "odd", TENSOR_F32, 3, odd);
    gguf_writer_tensor(w, "h", TENSOR_F16, 1, odd);
    memset(block, 7, sizeof block);
    for (int i = 0; i < 12; i++)
        values[i] = (float)i;
    gguf_writer_data(w, block, 100);
    gguf_writer_data(w, block, 240);
    gguf_writer_data(w, values, sizeof values);
    gguf_writer_data(w, "\1\2\3\4\5\6", 6);
    assert_int_equal(gguf_writer_close(w, &msg), 0);
    fclose(file);
    budget_init(&budget, 1 << 20);
    msg.text[0] = 0;
    if (gguf_open(&g, path, &budget, &msg))
        fail_msg("%s", msg.text);
    assert_string_equal(gguf_name(g), "model_gguf_test.gguf");
    assert_int_equal(gguf_version(g), 3);
    assert_int_equal(gguf_tensor_count(g), 3);
    assert_int_equal(gguf_tensor(g, "q")->bytes, 340);
    assert_memory_equal(gguf_tensor(g, "q")->data, block, 340);
    assert_int_equal(gguf_tensor(g, "odd")->dims[3], 1);
    assert_memory_equal(gguf_tensor(g, "odd")->data, values, sizeof values);
    assert_memory_equal(gguf_tensor(g, "h")->data, "\1\2\3\4\5\6", 6);
    assert_int_equal(gguf_tensor(g, "h")->offset % 32, 0);
    assert_true(budget.peak < 16384);
    gguf_close(g);
    // An unfinished file is one that failed; one that stands behind something else is as good.
    file = fopen(path, "wb");
    assert_int_equal(gguf_writer_open(&w, file, path, NULL), 0);
    gguf_writer_tensor(w, "q", TENSOR_Q8_0, 2, dims);
    gguf_writer_data(w, block, 10);
    assert_int_equal(gguf_writer_close(w, NULL), INST_EINVAL);
    rewind(file);
    fputs("before", file);
    assert_int_equal(gguf_writer_open(&w, file, path, NULL), 0);
    gguf_writer_string(w, "general.architecture", "test");
    assert_int_equal(gguf_writer_close(w, NULL), 0);
    fclose(file);
    char head[14] = {0};
    file = fopen(path, "rb");
    assert_int_equal(fread(head, 1, 14, file), 14);
    fclose(file);
    assert_memory_equal(head, "beforeGGUF\3\0\0\0", 14);
    unlink(path);
}

// The tables come from the budget; when it refuses, nothing stays behind.
static void test_budget(void **state)
{
    (void)state;
    struct build b;
    char name[32];
    build_begin(&b);
    for (uint32_t i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        build_key_u32(&b, name, i);
    }
    int refused = 0;
    for (uint64_t limit = 0; limit < 64 << 10; limit += 1024) {
        struct budget budget;
        struct gguf *g;
        struct inst_msg msg = {{0}};
        budget_init(&budget, limit);
        int rc = gguf_open_memory(&g, b.data, b.bytes, "test", &budget, &msg);
        refused += rc == INST_ENOMEM;
        if (rc)
            assert_int_equal(rc, INST_ENOMEM);
        gguf_close(g);
        assert_int_equal(budget.used, 0);
    }
    assert_true(refused > 5 && refused < 63);
    free(b.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers), cmocka_unit_test(test_other_values),
        cmocka_unit_test(test_many),     cmocka_unit_test(test_file),
        cmocka_unit_test(test_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
