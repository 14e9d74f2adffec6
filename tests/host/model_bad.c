// SPDX-License-Identifier: Apache-2.0
// Every file of tests/bad gives exactly the error line that expected.txt has for it.
#include "host/model/config.h"
#include "host/model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int open_model(const char *path, struct budget *budget, struct inst_msg *msg)
{
    struct gguf *gguf;
    struct model_config config;
    struct model_weights weights = {0};
    struct tokenizer *tokenizer = NULL;
    int rc = gguf_open(&gguf, path, budget, msg);
    if (rc)
        return rc;
    rc = model_config_read(gguf, &config, msg);
    if (!rc)
        rc = model_weights_bind(gguf, &config, budget, &weights, msg);
    if (!rc)
        rc = tokenizer_open(&tokenizer, gguf, budget, msg);
    tokenizer_free(tokenizer);
    model_weights_free(&weights);
    gguf_close(gguf);
    return rc;
}

static int code_of(const char *name)
{
#define CODE_OF(code, number, text, nvme)                                                          \
    if (!strcmp(name, #code))                                                                      \
        return code;
    INST_STATUS_MAP(CODE_OF)
    return atoi(name);
}

static void test_corpus(void **state)
{
    (void)state;
    FILE *f = fopen(INST_SOURCE_DIR "/tests/bad/expected.txt", "r");
    char line[1024], path[1024];
    int files = 0, wrong = 0;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        char *name = strtok(line, "\t"), *code = strtok(NULL, "\t\n"), *text = strtok(NULL, "\n");
        struct inst_msg msg = {{0}};
        struct budget budget;
        budget_init(&budget, 1 << 20);
        snprintf(path, sizeof path, INST_SOURCE_DIR "/tests/bad/%s", name);
        int rc = open_model(path, &budget, &msg);
        if (rc != code_of(code) || strcmp(msg.text, text ? text : "")) {
            print_error("%s: got %d '%s', expected %s '%s'\n", name, rc, msg.text, code,
                        text ? text : "");
            wrong++;
        }
        assert_int_equal(budget.used, 0);
        files++;
    }
    fclose(f);
    assert_true(files > 90);
    assert_int_equal(wrong, 0);
}

// A valid file, cut at every length and with every byte damaged in turn: an error or success, but
// never a crash (sanitizers watch) and never an error without its line.
static void damage(const char *path)
{
    FILE *f = fopen(path, "rb");
    static char good[1 << 16];
    assert_non_null(f);
    size_t size = fread(good, 1, sizeof good, f);
    fclose(f);
    assert_true(size > 1000 && size < sizeof good);
    int failures = 0;
    for (size_t at = 0; at < 2 * size; at++) {
        struct inst_msg msg = {{0}};
        struct gguf *gguf;
        struct model_config config;
        struct model_weights weights = {0};
        struct tokenizer *tokenizer = NULL;
        struct budget budget;
        size_t bytes = at < size ? at : size;
        budget_init(&budget, 1 << 20);
        char *copy = malloc(bytes + 1); // so that reading past the end is seen
        memcpy(copy, good, bytes);
        char *exact = realloc(copy, bytes ? bytes : 1);
        if (at >= size)
            exact[at - size] = (char)(exact[at - size] ^ (0x11 << (at % 4)));
        int rc = gguf_open_memory(&gguf, exact, bytes, "damaged", &budget, &msg);
        if (!rc)
            rc = model_config_read(gguf, &config, &msg);
        if (!rc)
            rc = model_weights_bind(gguf, &config, &budget, &weights, &msg);
        if (!rc)
            rc = tokenizer_open(&tokenizer, gguf, &budget, &msg);
        if (rc) {
            failures++;
            assert_true(strlen(msg.text) > 10);
            assert_null(strchr(msg.text, '\n'));
        }
        if (at < size)
            assert_int_not_equal(rc, 0); // a cut file is never taken for a whole one
        tokenizer_free(tokenizer);
        model_weights_free(&weights);
        gguf_close(gguf);
        assert_int_equal(budget.used, 0);
        free(exact);
    }
    assert_true(failures > (int)size);
}

static void test_damage(void **state)
{
    (void)state;
    damage(INST_SOURCE_DIR "/tests/bad/valid.gguf");
    damage(INST_SOURCE_DIR "/tests/bad/valid_bpe.gguf");
}

static void test_no_file(void **state)
{
    (void)state;
    struct gguf *gguf;
    struct inst_msg msg = {{0}};
    struct budget budget;
    budget_init(&budget, 1 << 20);
    assert_int_equal(gguf_open(&gguf, "/nonexistent/x.gguf", &budget, &msg), INST_ENOENT);
    assert_string_equal(msg.text, "/nonexistent/x.gguf: No such file or directory");
    msg.text[0] = 0;
    assert_int_equal(gguf_open(&gguf, "/", &budget, &msg), INST_EFORMAT);
    assert_string_equal(msg.text, "/: not a regular file");
    assert_null(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_corpus),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
