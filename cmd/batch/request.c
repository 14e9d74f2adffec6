// SPDX-License-Identifier: Apache-2.0
#include "cmd/batch/request.h"
#include "host/model/text.h"

#include <math.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t json_limit, json_left = SIZE_MAX; // the second counts while a line is parsed
static bool json_refused;

static void *json_malloc(size_t bytes)
{
    void *p = bytes <= json_left ? malloc(bytes) : NULL;
    size_t got = p ? malloc_usable_size(p) : 0;
    json_left -= got < json_left ? got : json_left;
    json_refused |= !p;
    return p;
}

static void json_free(void *p)
{
    size_t bytes = p ? malloc_usable_size(p) : 0;
    json_left += bytes < SIZE_MAX - json_left ? bytes : SIZE_MAX - json_left;
    free(p);
}

void batch_request_limit(size_t bytes)
{
    json_limit = bytes;
    cJSON_InitHooks(&(cJSON_Hooks){json_malloc, json_free});
}

struct parse {
    struct batch_request *r;
    struct batch_error *error;
    int64_t max_tokens[2], top_logprobs; // -1: not said
};

static bool refuse(struct parse *p, const char *code, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static bool refuse(struct parse *p, const char *code, const char *field, const char *fmt, ...)
{
    va_list args;
    p->error->code = code;
    snprintf(p->error->field, sizeof p->error->field, "%s", field);
    va_start(args, fmt);
    vsnprintf(p->error->text, sizeof p->error->text, fmt, args);
    va_end(args);
    return false;
}

static bool invalid(struct parse *p, const char *field, const char *what)
{
    return refuse(p, "invalid_request", field, "%s", what);
}

// Names come from the file: only what can stand in a message.
static const char *printable(const char *name, char out[40])
{
    size_t n = 0;
    for (; name[n] && n < 36; n++)
        out[n] = name[n] >= ' ' && name[n] <= '~' ? name[n] : '?';
    strcpy(out + n, name[n] ? "..." : "");
    return out;
}

static bool is_null(const cJSON *v)
{
    return cJSON_IsNull(v);
}

static bool number(struct parse *p, const cJSON *v, const char *field, double min, double max,
                   double *out)
{
    if (!cJSON_IsNumber(v))
        return invalid(p, field, "is not a number");
    if (!(v->valuedouble >= min && v->valuedouble <= max))
        return refuse(p, "invalid_request", field, "is out of range (%.10g to %.10g)", min, max);
    *out = v->valuedouble;
    return true;
}

static bool whole(struct parse *p, const cJSON *v, const char *field, double min, double max,
                  int64_t *out)
{
    double d = 0;
    if (!number(p, v, field, min, max, &d))
        return false;
    if (d != floor(d))
        return invalid(p, field, "is not a whole number");
    *out = (int64_t)d;
    return true;
}

static bool boolean(struct parse *p, const cJSON *v, const char *field, bool *out)
{
    if (!cJSON_IsBool(v))
        return invalid(p, field, "is neither true nor false");
    *out = cJSON_IsTrue(v);
    return true;
}

static bool real32(struct parse *p, const cJSON *v, const char *field, double min, double max,
                   float *out)
{
    double d = 0;
    if (!number(p, v, field, min, max, &d))
        return false;
    *out = (float)d;
    return true;
}

// The fields of a body, one function each. A null is as if the field were not there.

static bool ignore(struct parse *p, const cJSON *v, const char *field)
{
    (void)p, (void)v, (void)field;
    return true;
}

// Supported only where it asks for nothing: false, 0, "", [] or {}.
static bool nothing(struct parse *p, const cJSON *v, const char *field)
{
    bool is_nothing = cJSON_IsFalse(v) || (cJSON_IsNumber(v) && v->valuedouble == 0) ||
                      (cJSON_IsString(v) && !*v->valuestring) ||
                      ((cJSON_IsArray(v) || cJSON_IsObject(v)) && !v->child);
    return is_nothing || refuse(p, "unsupported_field", field, "is not supported");
}

static bool one(struct parse *p, const cJSON *v, const char *field)
{
    return (cJSON_IsNumber(v) && v->valuedouble == 1) ||
           refuse(p, "unsupported_field", field, "is not supported but as 1");
}

static bool text_only(struct parse *p, const cJSON *v, const char *field)
{
    const cJSON *type = cJSON_IsObject(v) ? cJSON_GetObjectItemCaseSensitive(v, "type")
                        : cJSON_IsArray(v) && cJSON_GetArraySize(v) == 1 ? v->child
                                                                         : NULL;
    return (cJSON_IsString(type) && !strcmp(type->valuestring, "text")) ||
           refuse(p, "unsupported_field", field, "is not supported but as text");
}

static bool model(struct parse *p, const cJSON *v, const char *field)
{
    return cJSON_IsString(v) || invalid(p, field, "is not a text");
}

static bool max_tokens(struct parse *p, const cJSON *v, const char *field)
{
    return whole(p, v, field, 1, 1e15, &p->max_tokens[0]);
}

static bool max_completion_tokens(struct parse *p, const cJSON *v, const char *field)
{
    return whole(p, v, field, 1, 1e15, &p->max_tokens[1]);
}

static bool temperature(struct parse *p, const cJSON *v, const char *field)
{
    return real32(p, v, field, 0, 100, &p->r->options.sampling.temperature);
}

static bool top_p(struct parse *p, const cJSON *v, const char *field)
{
    return real32(p, v, field, 0, 1, &p->r->options.sampling.top_p);
}

static bool min_p(struct parse *p, const cJSON *v, const char *field)
{
    return real32(p, v, field, 0, 1, &p->r->options.sampling.min_p);
}

static bool top_k(struct parse *p, const cJSON *v, const char *field)
{
    int64_t n = 0;
    if (!whole(p, v, field, -1, INT32_MAX, &n))
        return false;
    p->r->options.sampling.top_k = (int32_t)n;
    return true;
}

static bool repeat_penalty(struct parse *p, const cJSON *v, const char *field)
{
    return real32(p, v, field, 0.01, 100, &p->r->options.sampling.repeat_penalty);
}

static bool repeat_last(struct parse *p, const cJSON *v, const char *field)
{
    int64_t n = 0;
    if (!whole(p, v, field, -1, INT32_MAX, &n))
        return false;
    p->r->options.sampling.repeat_last = (int32_t)n;
    return true;
}

static bool seed(struct parse *p, const cJSON *v, const char *field)
{
    int64_t n = 0;
    if (!whole(p, v, field, 0, UINT32_MAX, &n))
        return false;
    p->r->options.sampling.seed = (uint32_t)n;
    p->r->seeded = true;
    return true;
}

static bool choices(struct parse *p, const cJSON *v, const char *field)
{
    int64_t n = 0;
    if (!whole(p, v, field, 1, BATCH_CHOICES_MAX, &n))
        return false;
    p->r->n = (uint32_t)n;
    return true;
}

static bool ignore_eos(struct parse *p, const cJSON *v, const char *field)
{
    return boolean(p, v, field, &p->r->options.ignore_end);
}

static bool add_stop(struct parse *p, const cJSON *v, const char *field)
{
    struct inst_generation_options *o = &p->r->options;
    if (!cJSON_IsString(v) || !*v->valuestring)
        return invalid(p, field, "is neither a text that is not empty nor a list of such");
    if (o->n_stops == BATCH_STOPS_MAX)
        return refuse(p, "invalid_request", field, "holds more than %d texts", BATCH_STOPS_MAX);
    p->r->stops[o->n_stops++] = v->valuestring;
    return true;
}

static bool stop(struct parse *p, const cJSON *v, const char *field)
{
    p->r->options.n_stops = 0; // instead of the command line's
    if (!cJSON_IsArray(v))
        return add_stop(p, v, field);
    const cJSON *item;
    cJSON_ArrayForEach(item, v) if (!add_stop(p, item, field)) return false;
    return true;
}

static bool logprobs_number(struct parse *p, const cJSON *v, const char *field)
{
    int64_t n = 0;
    if (!whole(p, v, field, 0, INST_TOP_LOGPROBS_MAX, &n))
        return false;
    p->r->options.logprobs = true;
    p->r->options.top_logprobs = (uint32_t)n;
    return true;
}

static bool logprobs_flag(struct parse *p, const cJSON *v, const char *field)
{
    return boolean(p, v, field, &p->r->options.logprobs);
}

static bool top_logprobs(struct parse *p, const cJSON *v, const char *field)
{
    return whole(p, v, field, 0, INST_TOP_LOGPROBS_MAX, &p->top_logprobs);
}

static bool prompt_tokens(struct parse *p, const cJSON *list, const char *field,
                          struct batch_prompt *prompt)
{
    const cJSON *item;
    size_t n = (size_t)cJSON_GetArraySize(list);
    prompt->tokens = calloc(n ? n : 1, sizeof *prompt->tokens);
    if (!prompt->tokens)
        return refuse(p, "out_of_memory", field, "does not fit in memory");
    cJSON_ArrayForEach(item, list)
    {
        int64_t id = 0;
        if (!whole(p, item, field, 0, INT32_MAX, &id))
            return false;
        prompt->tokens[prompt->n_tokens++] = (int32_t)id;
    }
    return n || invalid(p, field, "is empty");
}

static bool one_prompt(struct parse *p, const cJSON *v, const char *field)
{
    struct batch_prompt *prompt = &p->r->prompts[p->r->n_prompts++];
    if (cJSON_IsArray(v))
        return prompt_tokens(p, v, field, prompt);
    if (!cJSON_IsString(v))
        return invalid(p, field, "is neither a text nor a list of tokens or of prompts");
    prompt->text = v->valuestring;
    return true;
}

static bool prompt(struct parse *p, const cJSON *v, const char *field)
{
    bool several = cJSON_IsArray(v) && v->child && !cJSON_IsNumber(v->child);
    int n = several ? cJSON_GetArraySize(v) : 1;
    if (n > BATCH_CHOICES_MAX)
        return refuse(p, "invalid_request", field, "holds more than %d prompts", BATCH_CHOICES_MAX);
    p->r->prompts = calloc((size_t)n, sizeof *p->r->prompts);
    if (!p->r->prompts)
        return refuse(p, "out_of_memory", field, "does not fit in memory");
    if (!several)
        return one_prompt(p, v, field);
    const cJSON *item;
    cJSON_ArrayForEach(item, v) if (!one_prompt(p, item, field)) return false;
    return true;
}

// [{"type": "text", "text": ...}, ...]
static bool join_parts(struct parse *p, const cJSON *parts, const char *field, char **out)
{
    const cJSON *part, *text, *type;
    size_t n = 1;
    cJSON_ArrayForEach(part, parts)
    {
        type = cJSON_GetObjectItemCaseSensitive(part, "type");
        text = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "text"))
            return refuse(p, "unsupported_field", field, "has a part that is not of type text");
        if (!cJSON_IsString(text) || cJSON_GetArraySize(part) != 2)
            return invalid(p, field, "has a part that is not {\"type\": \"text\", \"text\": ...}");
        n += strlen(text->valuestring);
    }
    char *at = *out = malloc(n);
    if (!at)
        return refuse(p, "out_of_memory", field, "does not fit in memory");
    *at = 0;
    cJSON_ArrayForEach(part, parts)
    {
        text = cJSON_GetObjectItemCaseSensitive(part, "text");
        at = stpcpy(at, text->valuestring);
    }
    return true;
}

static bool message(struct parse *p, const cJSON *v, size_t index, const char *name)
{
    static const struct {
        const char *name;
        enum inst_role role;
    } roles[] = {{"system", INST_ROLE_SYSTEM},
                 {"developer", INST_ROLE_SYSTEM},
                 {"user", INST_ROLE_USER},
                 {"assistant", INST_ROLE_ASSISTANT}};
    char field[64];
    struct inst_chat_message *m = &p->r->messages[index];
    const cJSON *role = NULL, *content = NULL, *item;
    snprintf(field, sizeof field, "%s[%zu]", name, index);
    if (!cJSON_IsObject(v))
        return invalid(p, field, "is not an object");
    cJSON_ArrayForEach(item, v)
    {
        bool is_role = !strcmp(item->string, "role"), is_content = !strcmp(item->string, "content");
        char shown[40];
        if (is_role && !role)
            role = item;
        else if (is_content && !content)
            content = item;
        else if (is_role || is_content || !is_null(item))
            return refuse(p, "unsupported_field", field, "%s is not supported in a message%s",
                          printable(item->string, shown), is_role || is_content ? " twice" : "");
    }
    size_t r = 0, n_roles = sizeof roles / sizeof *roles;
    while (r < n_roles && !(cJSON_IsString(role) && !strcmp(role->valuestring, roles[r].name)))
        r++;
    if (r == n_roles)
        return invalid(p, field, "has a role other than system, developer, user and assistant");
    m->role = roles[r].role;
    if (cJSON_IsArray(content) && !join_parts(p, content, field, &p->r->joined[index]))
        return false;
    if (!cJSON_IsArray(content) && !cJSON_IsString(content))
        return invalid(p, field, "has no content that is a text");
    m->text = cJSON_IsArray(content) ? p->r->joined[index] : content->valuestring;
    m->bytes = strlen(m->text);
    return true;
}

static bool messages(struct parse *p, const cJSON *v, const char *field)
{
    struct batch_request *r = p->r;
    size_t n = cJSON_IsArray(v) ? (size_t)cJSON_GetArraySize(v) : 0;
    const cJSON *item;
    if (!n)
        return invalid(p, field, "is not a list of messages");
    r->messages = calloc(n, sizeof *r->messages);
    r->joined = calloc(n, sizeof *r->joined);
    if (!r->messages || !r->joined)
        return refuse(p, "out_of_memory", field, "does not fit in memory");
    r->n_messages = n;
    size_t i = 0;
    cJSON_ArrayForEach(item, v) if (!message(p, item, i++, field)) return false;
    bool system = r->messages[0].role == INST_ROLE_SYSTEM;
    for (i = system; i < n; i++)
        if (r->messages[i].role != ((i - system) % 2 ? INST_ROLE_ASSISTANT : INST_ROLE_USER))
            return refuse(p, "invalid_request", field,
                          "[%zu] is out of order: one system message at most, then user and "
                          "assistant in turns",
                          i);
    if ((n - system) % 2 == 0)
        return invalid(p, field, "does not end with a message of the user");
    return true;
}

enum { COMPLETIONS = 1, CHAT = 2, BOTH = 3 };

static const struct {
    const char *name;
    unsigned urls;
    bool (*read)(struct parse *p, const cJSON *v, const char *field);
} fields[] = {
    {"model", BOTH, model},
    {"prompt", COMPLETIONS, prompt},
    {"messages", CHAT, messages},
    {"max_tokens", BOTH, max_tokens},
    {"max_completion_tokens", CHAT, max_completion_tokens},
    {"temperature", BOTH, temperature},
    {"top_p", BOTH, top_p},
    {"top_k", BOTH, top_k},
    {"min_p", BOTH, min_p},
    {"repeat_penalty", BOTH, repeat_penalty},
    {"repeat_last_n", BOTH, repeat_last},
    {"seed", BOTH, seed},
    {"n", BOTH, choices},
    {"stop", BOTH, stop},
    {"ignore_eos", BOTH, ignore_eos},
    {"logprobs", COMPLETIONS, logprobs_number},
    {"logprobs", CHAT, logprobs_flag},
    {"top_logprobs", CHAT, top_logprobs},
    // Nothing that an answer depends on
    {"user", BOTH, ignore},
    {"metadata", BOTH, ignore},
    {"store", BOTH, ignore},
    {"service_tier", BOTH, ignore},
    {"safety_identifier", BOTH, ignore},
    {"prompt_cache_key", BOTH, ignore},
    // As long as they ask for nothing
    {"stream", BOTH, nothing},
    {"stream_options", BOTH, nothing},
    {"echo", COMPLETIONS, nothing},
    {"suffix", COMPLETIONS, nothing},
    {"best_of", COMPLETIONS, one},
    {"frequency_penalty", BOTH, nothing},
    {"presence_penalty", BOTH, nothing},
    {"logit_bias", BOTH, nothing},
    {"tools", CHAT, nothing},
    {"functions", CHAT, nothing},
    {"response_format", CHAT, text_only},
    {"modalities", CHAT, text_only},
};
enum { FIELDS = sizeof fields / sizeof *fields };

static bool read_field(struct parse *p, const cJSON *item, uint64_t *seen)
{
    char field[96], shown[40];
    unsigned url = p->r->url == BATCH_CHAT ? CHAT : COMPLETIONS;
    snprintf(field, sizeof field, "body.%s", printable(item->string, shown));
    for (size_t i = 0; i < FIELDS; i++) {
        if (!(fields[i].urls & url) || strcmp(fields[i].name, item->string))
            continue;
        if (*seen >> i & 1)
            return invalid(p, field, "is there twice");
        *seen |= (uint64_t)1 << i;
        return is_null(item) || fields[i].read(p, item, field);
    }
    return is_null(item) || refuse(p, "unsupported_field", field, "is not supported");
}

static bool read_body(struct parse *p, const cJSON *body)
{
    struct batch_request *r = p->r;
    struct inst_generation_options *o = &r->options;
    const cJSON *item;
    uint64_t seen = 0;
    _Static_assert(FIELDS <= 64, "a bit each");
    if (!cJSON_IsObject(body))
        return invalid(p, "body", "is not an object");
    cJSON_ArrayForEach(item, body) if (!read_field(p, item, &seen)) return false;
    if (r->url == BATCH_CHAT ? !r->n_messages : !r->n_prompts)
        return invalid(p, r->url == BATCH_CHAT ? "body.messages" : "body.prompt", "is missing");
    if (p->max_tokens[0] >= 0 && p->max_tokens[1] >= 0 && p->max_tokens[0] != p->max_tokens[1])
        return invalid(p, "body.max_tokens", "is not body.max_completion_tokens");
    for (int i = 0; i < 2; i++)
        if (p->max_tokens[i] >= 0)
            o->max_tokens = (uint64_t)p->max_tokens[i];
    if (p->top_logprobs > 0 && !o->logprobs)
        return invalid(p, "body.top_logprobs", "needs logprobs");
    if (p->top_logprobs >= 0)
        o->top_logprobs = (uint32_t)p->top_logprobs;
    if (r->n * (r->url == BATCH_CHAT ? 1 : r->n_prompts) > BATCH_CHOICES_MAX)
        return refuse(p, "invalid_request", "body.n", "asks for more than %d choices",
                      BATCH_CHOICES_MAX);
    return true;
}

// What JSON may hold and texts here may not: bytes that are no UTF-8, and NUL, written or escaped.
static bool check_text(struct parse *p, const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes;) {
        int n = line[i] ? text_utf8_length((const unsigned char *)line + i, bytes - i) : 0;
        if (n <= 0)
            return refuse(p, "invalid_json", "", "byte %zu is %s", i + 1,
                          line[i] ? "not UTF-8" : "NUL");
        if (line[i] == '\\' && i + 5 < bytes && !memcmp(line + i, "\\u0000", 6))
            return refuse(p, "invalid_json", "", "byte %zu begins a NUL (\\u0000)", i + 1);
        i += line[i] == '\\' && i + 1 < bytes && (unsigned char)line[i + 1] < 0x80 && line[i + 1]
                 ? 2
                 : (size_t)n;
    }
    return true;
}

static bool read_line(struct parse *p, const char *line, size_t bytes)
{
    const cJSON *item, *url = NULL, *method = NULL, *body = NULL;
    const char *end = NULL;
    struct batch_request *r = p->r;
    bool has_id = false;
    if (!check_text(p, line, bytes))
        return false;
    json_refused = false;
    json_left = json_limit ? json_limit : SIZE_MAX;
    r->json = cJSON_ParseWithLengthOpts(line, bytes, &end, false);
    json_left = SIZE_MAX;
    if (!r->json && json_refused)
        return refuse(p, "out_of_memory", "", "the line takes too much memory");
    if (!r->json)
        return refuse(p, "invalid_json", "", "it is not JSON from byte %zu on",
                      end ? (size_t)(end - line) + 1 : 1);
    while (end < line + bytes && strchr(" \t\r\n", *end))
        end++;
    if (end != line + bytes)
        return refuse(p, "invalid_json", "", "something follows at byte %zu",
                      (size_t)(end - line) + 1);
    if (!cJSON_IsObject(r->json))
        return refuse(p, "invalid_json", "", "it is not an object");
    cJSON_ArrayForEach(item, r->json)
    {
        char shown[40];
        const cJSON **to = !strcmp(item->string, "url")      ? &url
                           : !strcmp(item->string, "method") ? &method
                           : !strcmp(item->string, "body")   ? &body
                                                             : NULL;
        if (!strcmp(item->string, "custom_id") && !has_id) {
            has_id = true;
            if (cJSON_IsString(item))
                r->custom_id = item->valuestring;
        } else if (!to) {
            return refuse(p, "unsupported_field", printable(item->string, shown), "is %s",
                          strcmp(item->string, "custom_id") ? "unknown" : "there twice");
        } else if (*to) {
            return invalid(p, item->string, "is there twice");
        } else {
            *to = item;
        }
    }
    if (!r->custom_id || !*r->custom_id)
        return invalid(p, "custom_id", has_id ? "is not a text, or empty" : "is missing");
    if (!cJSON_IsString(method) || strcmp(method->valuestring, "POST"))
        return invalid(p, "method", "is not POST");
    bool chat = cJSON_IsString(url) && !strcmp(url->valuestring, "/v1/chat/completions");
    if (!chat && (!cJSON_IsString(url) || strcmp(url->valuestring, "/v1/completions")))
        return invalid(p, "url", "is neither /v1/completions nor /v1/chat/completions");
    r->url = chat ? BATCH_CHAT : BATCH_COMPLETIONS;
    return read_body(p, body);
}

bool batch_request_parse(struct batch_request *request, const char *line, size_t bytes,
                         const struct batch_defaults *defaults, struct batch_error *error)
{
    struct parse p = {.r = request, .error = error, .max_tokens = {-1, -1}, .top_logprobs = -1};
    *request = (struct batch_request){
        .n = 1,
        .options = {.size = sizeof request->options,
                    .sampling = defaults->sampling,
                    .max_tokens = defaults->max_tokens,
                    .ignore_end = defaults->ignore_end},
    };
    for (size_t i = 0; i < defaults->n_stops && i < BATCH_STOPS_MAX; i++)
        request->stops[request->options.n_stops++] = defaults->stops[i];
    *error = (struct batch_error){0};
    bool ok = read_line(&p, line, bytes);
    request->options.stops = request->stops;
    return ok;
}

static void free_prompts(struct batch_request *r)
{
    for (size_t i = 0; i < r->n_prompts; i++)
        free(r->prompts[i].tokens);
    for (size_t i = 0; r->joined && i < r->n_messages; i++)
        free(r->joined[i]);
    free(r->prompts);
    free(r->messages);
    free(r->joined);
    cJSON_Delete(r->json);
    r->prompts = NULL;
    r->messages = NULL;
    r->joined = NULL;
    r->json = NULL;
    r->n_messages = r->n_prompts = 0;
}

void batch_request_free(struct batch_request *r)
{
    free_prompts(r);
    free(r->kept);
    *r = (struct batch_request){0};
}

bool batch_request_shrink(struct batch_request *r)
{
    size_t n = strlen(r->custom_id) + 1;
    for (size_t i = 0; i < r->options.n_stops; i++)
        n += strlen(r->stops[i]) + 1;
    char *at = r->kept = malloc(n);
    if (!at)
        return false;
    r->custom_id = strcpy(at, r->custom_id);
    at += strlen(at) + 1;
    for (size_t i = 0; i < r->options.n_stops; i++) {
        r->stops[i] = strcpy(at, r->stops[i]);
        at += strlen(at) + 1;
    }
    free_prompts(r);
    return true;
}
