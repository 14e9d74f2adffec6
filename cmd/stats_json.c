// SPDX-License-Identifier: Apache-2.0
// cJSON writes everything but the token ids: as JSON nodes they would cost more memory than the
// model's own buffers, so they are printed directly.
#include "cmd/stats_json.h"
#include "cmd/options.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <string.h>

static bool add(cJSON *o, const char *name, double value)
{
    return cJSON_AddNumberToObject(o, name, value);
}

static bool add_model(cJSON *o, const struct inst_model_info *info)
{
    return cJSON_AddStringToObject(o, "version", inst_version()) &&
           cJSON_AddStringToObject(o, "model", info->name) &&
           cJSON_AddStringToObject(o, "architecture", info->architecture) &&
           add(o, "weight_bytes", (double)info->weight_bytes) &&
           add(o, "kv_bytes_per_token", (double)info->kv_bytes_per_token) &&
           add(o, "context", (double)info->context) && add(o, "memory", (double)info->memory) &&
           add(o, "kv_limit", (double)info->kv_limit) && add(o, "chunk", info->chunk) &&
           add(o, "group", info->group) && add(o, "threads", info->threads) &&
           cJSON_AddStringToObject(o, "kernels", info->kernels) &&
           cJSON_AddStringToObject(o, "kv_place", info->kv_place) &&
           cJSON_AddStringToObject(o, "kv_path", info->kv_path) &&
           cJSON_AddStringToObject(o, "kv_type", info->kv_type) &&
           cJSON_AddStringToObject(o, "chat_template", info->chat ? info->chat : "");
}

static bool add_flash(cJSON *one, const struct inst_drive_stats *d)
{
    return add(one, "modelled_flash_seconds", d->modelled_flash_seconds) &&
           add(one, "modelled_channel_seconds", d->modelled_channel_seconds) &&
           add(one, "modelled_die_seconds", d->modelled_die_seconds) &&
           add(one, "modelled_engine_seconds", d->modelled_engine_seconds) &&
           add(one, "modelled_gemv_seconds", d->modelled_gemv_seconds) &&
           add(one, "modelled_softmax_seconds", d->modelled_softmax_seconds) &&
           add(one, "modelled_argtopk_seconds", d->modelled_argtopk_seconds) &&
           add(one, "modelled_link_seconds", d->modelled_link_seconds) &&
           add(one, "read_pages", (double)d->read_pages) &&
           add(one, "program_pages", (double)d->program_pages) &&
           add(one, "block_erases", (double)d->block_erases) &&
           add(one, "read_retries", (double)d->read_retries) &&
           add(one, "suspensions", (double)d->suspensions) &&
           add(one, "joined_pages", (double)d->joined_pages) &&
           add(one, "bad_blocks", (double)d->bad_blocks) &&
           add(one, "grown_bad_blocks", (double)d->grown_bad_blocks) &&
           add(one, "failed_programs", (double)d->failed_programs) &&
           add(one, "failed_erases", (double)d->failed_erases) &&
           add(one, "failed_reads", (double)d->failed_reads) &&
           add(one, "most_erases", (double)d->most_erases);
}

static bool add_drives(cJSON *o, const struct run_result *r)
{
    cJSON *list = cJSON_AddArrayToObject(o, "drives");
    bool ok = list != NULL;
    for (uint32_t i = 0; ok && i < r->n_drives; i++) {
        const struct inst_drive_stats *d = &r->drives[i];
        cJSON *one = cJSON_CreateObject();
        ok = one && cJSON_AddItemToArray(list, one) &&
             cJSON_AddStringToObject(one, "place", d->place) &&
             add(one, "flash_read_bytes", (double)d->flash_read_bytes) &&
             add(one, "flash_program_bytes", (double)d->flash_program_bytes) &&
             add(one, "stream_bytes", (double)d->stream_bytes) &&
             add(one, "cache_hit_bytes", (double)d->cache_hit_bytes) &&
             (!d->emulated || add_flash(one, d));
    }
    return ok;
}

static bool add_result(cJSON *o, const struct run_result *r)
{
    const struct inst_stats *s = &r->stats;
    bool ok = add(o, "prompt_tokens", (double)r->prompt_tokens) &&
              add(o, "generated_tokens", (double)r->generated_tokens) &&
              cJSON_AddStringToObject(o, "stop_reason", r->stop_reason) &&
              (r->batch ? add(o, "lines", (double)r->lines) &&
                              add(o, "failed_lines", (double)r->failed_lines)
                        : add(o, "turns", (double)r->turns)) &&
              add(o, "seed", r->seed) &&
              add(o, "prefill_tokens_per_s", rate((double)s->prefill_tokens, s->prefill_seconds)) &&
              add(o, "decode_tokens_per_s", rate((double)s->decode_tokens, s->decode_seconds)) &&
              add(o, "peak_memory_bytes", (double)r->peak_memory);
#define ADD_FIELD(type, name, text) ok = ok && add(o, #name, (double)s->name);
    INST_STATS_MAP(ADD_FIELD)
#undef ADD_FIELD
    for (size_t i = 0; i < s->n_method; i++)
        ok = ok && add(o, s->method[i].name, s->method[i].value);
    return ok;
}

int stats_take(inst_engine *e, struct inst_model_info *info, struct run_result *result,
               struct inst_msg *msg)
{
    int err = inst_engine_stats(e, &result->stats, msg);
    inst_engine_info(e, info); // what has happened to drives
    result->n_drives = info->kv_drives;
    return err ? err : inst_engine_drives(e, result->drives, info->kv_drives, msg);
}

int stats_json_write(struct output_file *out, const struct inst_model_info *info,
                     const struct run_result *result, const int32_t *tokens, size_t n_tokens)
{
    FILE *file = out->stream;
    cJSON *object = cJSON_CreateObject();
    char *text = NULL;
    if (object && add_model(object, info) && add_result(object, result) &&
        add_drives(object, result))
        text = cJSON_Print(object);
    cJSON_Delete(object);
    size_t n = text ? strlen(text) : 0;
    bool ok = n > 2;
    errno = ok ? 0 : ENOMEM;
    // Without the closing "\n}".
    ok = ok && fwrite(text, 1, n - 2, file) == n - 2;
    if (!result->batch)
        ok = ok && fputs(",\n\t\"text_tokens\":\t[", file) >= 0;
    for (size_t i = 0; ok && i < n_tokens; i++)
        ok = fprintf(file, i ? ", %d" : "%d", tokens[i]) > 0;
    ok = ok && fputs(result->batch ? "\n}\n" : "]\n}\n", file) >= 0;
    int code = ok ? 0 : output_file_failed(out);
    cJSON_free(text);
    return code ? code : output_file_close(out);
}
