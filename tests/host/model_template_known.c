// SPDX-License-Identifier: Apache-2.0
// Which template texts are taken for known: those of tests/data/templates however their white
// space lies and whatever default system text they have, and none that says anything else. Where a
// byte can go without another meaning is Jinja's word (tools/reference/make_chat_goldens.py).
#include "tests/host/model_chat.h"

static struct tm today;

static cJSON *read_all(void)
{
    return read_goldens(INST_SOURCE_DIR "/tests/data/chat.json", &today);
}

static const char *form_of(struct gguf_string text)
{
    struct chat_template chat;
    return chat_template_recognise(&chat, text, &today, NULL) ? NULL : chat_template_name(&chat);
}

// The text with every `from` replaced; the caller frees it.
static char *replace(const char *text, const char *from, const char *to)
{
    size_t n = strlen(from), m = strlen(to);
    char *out = malloc(strlen(text) * (m + 1) + 1), *end = out;
    while (*text) {
        bool here = !strncmp(text, from, n);
        memcpy(end, here ? to : text, here ? m : 1);
        end += here ? m : 1;
        text += here ? n : 1;
    }
    *end = 0;
    return out;
}

static void expect_form(const cJSON *m, const char *what, char *text)
{
    const char *form = form_of(string_of(text));
    if (!form || strcmp(form, get(m, "form")))
        print_error("%s, %s: %s\n", get(m, "name"), what, form ? form : "refused");
    assert_string_equal(form ? form : "refused", get(m, "form"));
    free(text);
}

static void test_white_space_apart(void **state)
{
    (void)state;
    cJSON *json = read_all();
    for (const cJSON *m = cJSON_GetObjectItem(json, "models")->child; m; m = m->next) {
        char *text = text_of(m), *more = malloc(strlen(text) + 64);
        expect_form(m, "as it is", strdup(text));
        expect_form(m, "CR LF", replace(text, "\n", "\r\n"));
        expect_form(m, "wide code", replace(text, "{% if ", "{%   if\n\t"));
        sprintf(more, "{#- {{ comment }} #}\n%s%s", text,
                *text && text[strlen(text) - 1] == '\n' ? "" : "\n");
        expect_form(m, "comment and line break", more);
        free(text);
    }
    cJSON_Delete(json);
}

// A default system text that nobody has seen is rendered as it stands.
static void test_own_system_text(void **state)
{
    (void)state;
    cJSON *json = read_all();
    int n = 0;
    for (const cJSON *m = cJSON_GetObjectItem(json, "models")->child; m; m = m->next) {
        const cJSON *own = cJSON_GetObjectItem(m, "own");
        const struct special special[] = {{get(m, "bos"), 3}, {get(m, "eos"), 3}};
        const char *said = "Hello, who are you?";
        struct chat_turn turn = {.first = true, .text = said, .bytes = strlen(said)};
        struct chat_template chat;
        struct vocabulary v;
        if (!own)
            continue;
        char *text = text_of(m), *other = replace(text, get(own, "from"), get(own, "to"));
        open_vocabulary(&v, special, 2, NULL);
        struct chat_text out = {.budget = &v.budget};
        assert_int_equal(chat_template_recognise(&chat, string_of(other), &today, NULL), 0);
        assert_int_equal(chat_template_render(&chat, v.t, &turn, &out, NULL), 0);
        const char *expected = get(own, "text") + (chat.bos ? strlen(get(m, "bos")) : 0);
        assert_int_equal(out.bytes, strlen(expected));
        assert_memory_equal(out.text, expected, out.bytes);
        chat_text_free(&out);
        close_vocabulary(&v);
        free(other);
        // A text that is there but empty is no default.
        other = replace(text, get(own, "from"), "");
        if (strstr(text, get(own, "from"))[strlen(get(own, "from"))] != ' ')
            assert_null(form_of(string_of(other)));
        free(other);
        free(text);
        n++;
    }
    cJSON_Delete(json);
    assert_true(n > 5);
}

// What may be changed in a text, as runs of bytes: [first, number] each.
struct freedom {
    const cJSON *may_go; // white space and the like: one of these bytes at a time
    const cJSON *own;    // the default system text: another is known as well; may be NULL
};

static bool in_runs(const cJSON *runs, size_t at)
{
    for (const cJSON *run = runs ? runs->child : NULL; run; run = run->next) {
        size_t first = (size_t)run->child->valuedouble;
        if (at >= first && at - first < (size_t)run->child->next->valuedouble)
            return true;
    }
    return false;
}

static int taken(const char *name, const char *what, struct gguf_string text, size_t at)
{
    const char *form = form_of(text);
    if (form)
        print_error("%s, %s at %zu: taken for %s\n", name, what, at, form);
    return form != NULL;
}

// Every eleventh byte of every template, without it and with another: the text means something
// else.
static int change_bytes(const char *name, const char *text, const struct freedom *f)
{
    size_t bytes = strlen(text);
    char *changed = malloc(bytes + 1);
    int wrong = 0;
    for (size_t i = 0; i < bytes; i += 11) {
        if (in_runs(f->own, i))
            continue;
        memcpy(changed, text, i);
        memcpy(changed + i, text + i + 1, bytes - i);
        bool free_here = in_runs(f->may_go, i), blank = strchr(" \t\n+-", text[i]);
        if (!free_here)
            wrong += taken(name, "a byte less", string_of(changed), i);
        memcpy(changed, text, bytes + 1);
        changed[i] = text[i] == 'q' ? 'z' : 'q';
        if (!free_here || (blank && !strstr(text, "{#")))
            wrong += taken(name, "another byte", string_of(changed), i);
    }
    free(changed);
    return wrong;
}

// Something that is always said, wherever it can stand.
static int add_words(const char *name, const char *text)
{
    static const char *const words[] = {"{{- '<|im_start|>system\\n' }}", "x"};
    size_t bytes = strlen(text);
    char *changed = malloc(bytes + 64);
    int wrong = 0;
    for (size_t i = 0; i <= bytes; i++) {
        if (i && i < bytes && memcmp(text + i - 1, "%}", 2))
            continue;
        for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
            size_t at = i && i < bytes ? i + 1 : i;
            sprintf(changed, "%.*s%s%s", (int)at, text, words[w], text + at);
            wrong += taken(name, words[w], string_of(changed), at);
        }
    }
    free(changed);
    return wrong;
}

static void test_changed_texts_are_refused(void **state)
{
    (void)state;
    cJSON *json = read_all();
    int wrong = 0;
    for (const cJSON *m = cJSON_GetObjectItem(json, "models")->child; m; m = m->next) {
        const cJSON *own = cJSON_GetObjectItem(m, "own");
        const struct freedom f = {cJSON_GetObjectItem(m, "free"),
                                  own ? cJSON_GetObjectItem(own, "spans") : NULL};
        char *text = text_of(m);
        wrong += change_bytes(get(m, "name"), text, &f);
        wrong += add_words(get(m, "name"), text);
        for (size_t n = strlen(text) - 2; n > 97; n -= 97) // the start of one is none
            wrong += taken(get(m, "name"), "cut", (struct gguf_string){text, n}, n);
        free(text);
    }
    cJSON_Delete(json);
    assert_int_equal(wrong, 0);
}

// Roles, default values of variables: the words that a template's code compares.
static void test_other_words_are_refused(void **state)
{
    (void)state;
    static const char *const words[][2] = {
        {"'user'", "'human'"},
        {"\"user\"", "\"human\""},
        {"'assistant'", "'gpt'"},
        {"assistant", "model"},
        {"<|im_end|>\\n", "<|im_end|>"},
        {"+ '\\n'", ""},
        {"= false", "= true"},
        {"['content']", "['text']"},
        {".content", ".text"},
        {" | trim", ""},
        {".strip()", ""},
        {"' '", "''"},
        {"\"system\"", "\"sys\""},
        {"'system'", "'sys'"},
        {"bos_token", "pad_token"},
        {"eos_token", "pad_token"},
        {"if not ", "if "},
        {"December 2023", "May 24"},
        {"%d %b %Y", "%Y-%m-%d"},
    };
    cJSON *json = read_all();
    int wrong = 0, changed = 0;
    for (const cJSON *m = cJSON_GetObjectItem(json, "models")->child; m; m = m->next) {
        char *text = text_of(m);
        for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
            char *other = replace(text, words[w][0], words[w][1]);
            if (strcmp(text, other)) {
                changed++;
                wrong += taken(get(m, "name"), words[w][0], string_of(other), w);
            }
            free(other);
        }
        free(text);
    }
    cJSON_Delete(json);
    assert_true(changed > 300);
    assert_int_equal(wrong, 0);
}

static void test_refused_by_name(void **state)
{
    (void)state;
    static const char *const nearest[][2] = {
        {"chatml-default-with-apostrophe", NULL}, // known but for its default
        {"chatml-default-with-braces", "chatml"},
        {"chatml-no-newline", "chatml"},
        {"chatml-raw-system", "chatml"},
        {"chatml-tool-other-role", "chatml"},
        {"llama3-always-system", "llama3"},
        {"user-without-end", "falcon3"},
        {"QwQ-32B-closed-thinking", "chatml"},
        {"HuggingFaceTB-SmolLM3-3B", "chatml"},
        {"NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "chatml"},
        {"unsloth-Llama-3.1", "llama3"},
    };
    for (size_t i = 0; i < sizeof nearest / sizeof *nearest; i++) {
        char name[256], expected[64];
        struct inst_msg msg = {0};
        struct chat_template chat;
        snprintf(name, sizeof name, "refused/%s", nearest[i][0]);
        char *text = read_template(name);
        int rc = chat_template_recognise(&chat, string_of(text), &today, &msg);
        if (!nearest[i][1]) {
            assert_int_equal(rc, 0);
            assert_int_equal(chat.system[0].bytes,
                             strlen("You are a helpful assistant. Don't guess."));
        } else {
            snprintf(expected, sizeof expected, "nearest is '%s'", nearest[i][1]);
            assert_int_equal(rc, INST_ENOCHAT);
            assert_null(chat_template_name(&chat));
            if (!strstr(msg.text, expected))
                print_error("%s: %s\n", name, msg.text);
            assert_non_null(strstr(msg.text, expected));
        }
        free(text);
    }
    static const char *const none[] = {
        "",     "{{ messages }}", "<|im_start|>", "{",       "{{",      "{%",
        "{# x", "{{ 'x",          "{{ (}} ",      "{% \"\\", "\x05\x06"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        struct inst_msg msg = {0};
        struct chat_template chat;
        assert_int_equal(chat_template_recognise(&chat, string_of(none[i]), NULL, &msg),
                         INST_ENOCHAT);
        assert_non_null(strstr(msg.text, "nor near one (phi4, chatml"));
        assert_non_null(strstr(msg.text, "raw)"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_white_space_apart),
        cmocka_unit_test(test_own_system_text),
        cmocka_unit_test(test_changed_texts_are_refused),
        cmocka_unit_test(test_other_words_are_refused),
        cmocka_unit_test(test_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
