// SPDX-License-Identifier: Apache-2.0
// instinfer batch: the requests of a file, answered in whatever order is fast, so that what is in
// the output depends on the requests alone. docs/batch.md has the format.
#include "cmd/batch/batch.h"
#include "cmd/run.h"
#include "cmd/stats_json.h"
#include "cmd/commands.h"
#include "host/model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    PARALLEL_MOST = 32, // that are tried where nobody says how many
    JSON_SHARE = 8,     // of the memory that a line's JSON may take
    JSON_MOST = 64 << 20,
    SAMPLES = 256, // of a model's file, for its print
    SAMPLE_BYTES = 64 << 10,
};

// "2/8", or what mpirun or Slurm put into the environment.
static int read_share(struct batch *b)
{
    static const char *const names[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                           {"PMI_RANK", "PMI_SIZE"},
                                           {"SLURM_PROCID", "SLURM_NTASKS"}};
    unsigned share = 0, shares = 0;
    int end = 0;
    if (!b->share_text)
        return 0;
    if (!strcmp(b->share_text, "auto")) {
        const char *rank = NULL, *size = NULL;
        for (size_t i = 0; i < 3 && (!rank || !size); i++) {
            rank = getenv(names[i][0]);
            size = getenv(names[i][1]);
        }
        if (!rank || !size)
            return fail(EXIT_USAGE, "batch: --share auto: neither mpirun nor Slurm says which "
                                    "process this is (say it: --share I/N)");
        share = (unsigned)strtoul(rank, NULL, 10) + 1;
        shares = (unsigned)strtoul(size, NULL, 10);
    } else if (sscanf(b->share_text, "%u/%u%n", &share, &shares, &end) != 2 || b->share_text[end]) {
        shares = 0;
    }
    if (!share || share > shares || shares > 100000)
        return fail(EXIT_USAGE, "batch: --share: '%s' is not I/N with I from 1 to N, nor auto",
                    b->share_text);
    b->share = share;
    b->shares = shares;
    return 0;
}

static int check_options(struct batch *b, const char *operand)
{
    int code = stops_check(&b->stops, "batch");
    if (code)
        return code;
    if (b->stops.n > BATCH_STOPS_MAX)
        return fail(EXIT_USAGE, "batch: --stop: more than %d texts", BATCH_STOPS_MAX);
    if (operand && b->input)
        return fail(EXIT_USAGE, "batch: unexpected argument '%s'", operand);
    if (operand)
        b->input = operand;
    if (!b->input)
        return fail(EXIT_USAGE, "batch: no requests given: name a file");
    if (!b->out.path)
        return fail(EXIT_USAGE, "batch: no output given: use -o FILE");
    if (b->shares && b->unordered)
        return fail(EXIT_USAGE, "batch: --unordered is without --share");
    return 0;
}

// Names that follow from the output's.
static int name_files(struct batch *b)
{
    char *path = NULL;
    if (b->shares) {
        if (asprintf(&b->own_path[0], "%s.%u-of-%u", b->out.path, b->share, b->shares) < 0)
            return fail(EXIT_FAILED, "out of memory");
        b->out.path = b->own_path[0];
    }
    if (!b->part_path && asprintf(&path, "%s.part", b->out.path) < 0)
        return fail(EXIT_FAILED, "out of memory");
    if (path)
        b->part_path = b->own_path[1] = path;
    if (asprintf(&b->unfinished, "%s-whole", b->part_path) < 0)
        return fail(EXIT_FAILED, "out of memory");
    b->out.unfinished = b->unfinished;
    return 0;
}

// Before the work: the output can be written, and where it is no file there is a place for answers.
static int check_output(struct batch *b, const struct options *options)
{
    int code = output_files_open(options);
    if (code || b->out.target) {
        output_file_abandon(&b->out);
        return code;
    }
    if (b->shares)
        return fail(EXIT_USAGE, "batch: -o: '%s' is no file, and a share needs one", b->out.path);
    if (b->own_path[1])
        return fail(EXIT_USAGE,
                    "batch: -o: '%s' is no file: --part FILE says where answers are kept meanwhile",
                    b->out.path);
    return 0;
}

// As much of a file as tells it from others: pieces of it, evenly spread. False with errno.
static bool print_file(const char *path, XXH3_state_t *state, uint64_t *bytes)
{
    static char piece[SAMPLE_BYTES];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && !fstat(fd, &st);
    uint64_t size = ok ? (uint64_t)st.st_size : 0;
    uint64_t step = size > (uint64_t)SAMPLES * SAMPLE_BYTES ? size / SAMPLES : SAMPLE_BYTES;
    for (uint64_t at = 0; ok && at < size; at += step) {
        ssize_t got = pread(fd, piece, sizeof piece, (off_t)at);
        ok = got >= 0;
        if (ok)
            XXH3_64bits_update(state, piece, (size_t)got);
    }
    if (fd >= 0)
        close(fd);
    *bytes += size;
    return ok;
}

// "BYTES PRINT" of all parts of the model.
static int print_model(const char *path, char out[64])
{
    char part[PATH_MAX];
    uint64_t bytes = 0, i = 0;
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return fail(EXIT_FAILED, "out of memory");
    XXH3_64bits_reset(state);
    bool ok = true;
    for (; ok && gguf_part_path(path, i, part, sizeof part); i++)
        ok = print_file(part, state, &bytes);
    if (ok && !i)
        ok = print_file(path, state, &bytes);
    snprintf(out, 64, "%" PRIu64 " bytes, %016" PRIx64, bytes, (uint64_t)XXH3_64bits_digest(state));
    XXH3_freeState(state);
    return ok ? 0 : fail(EXIT_FAILED, "%s: %s", path, strerror(errno));
}

static bool add(cJSON *head, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static bool add(cJSON *head, const char *key, const char *fmt, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    bool ok = vasprintf(&text, fmt, args) >= 0 && cJSON_AddStringToObject(head, key, text);
    va_end(args);
    free(text);
    return ok;
}

// Of what the answers are; NULL: out of memory.
static cJSON *make_head(const struct batch *b, const char *model, time_t now)
{
    const struct batch_lines *lines = &b->lines;
    const struct inst_sampling *s = &b->sampling;
    const struct inst_options *o = &b->engine.engine;
    const char *sparf = b->engine.sparf.text ? b->engine.sparf.text : "";
    cJSON *head = cJSON_CreateObject(), *stops = cJSON_CreateArray();
    char *stops_text = NULL;
    for (size_t i = 0; i < b->stops.n; i++)
        cJSON_AddItemToArray(stops, cJSON_CreateString(b->stops.items[i]));
    stops_text = cJSON_PrintUnformatted(stops);
    cJSON_Delete(stops);
    bool ok =
        head && stops_text && cJSON_AddNumberToObject(head, "instinfer_batch", 1) &&
        add(head, "version", "%s", inst_version()) &&
        add(head, "input", "%" PRIu64 " bytes, %016" PRIx64, lines->bytes, lines->print) &&
        add(head, "lines", "%zu", lines->n) &&
        add(head, "last_line", "%" PRIu32, lines->line[lines->n - 1].number) &&
        add(head, "share", "%u/%u", b->share, b->shares) && add(head, "model", "%s", model) &&
        add(head, "context", "%" PRIu64, b->info.context) &&
        add(head, "attention", "%s %s %u", o->attention ? o->attention : "dense", sparf,
            o->page_channels) &&
        (!o->kv_type || !strcmp(o->kv_type, "f16") || add(head, "kv_type", "%s", o->kv_type)) &&
        (!o->attention || strcmp(o->attention, "pages") ||
         add(head, "pages", "%.9g %.9g %u %u %u %u %d %u %u %d", o->pages_ratio, o->pages_mass,
             o->pages_piece, o->pages_keys, o->pages_heads, o->pages_newest, o->pages_rest,
             o->pages_look, o->pages_bits, o->pages_flash)) &&
        add(head, "template", "%s", b->info.chat ? b->info.chat : "") &&
        add(head, "sampling", "temp %.9g, top-k %d, top-p %.9g, min-p %.9g, repeat %.9g of %d",
            (double)s->temperature, s->top_k, (double)s->top_p, (double)s->min_p,
            (double)s->repeat_penalty, s->repeat_last) &&
        add(head, "seed", "%" PRIu32, s->seed) && add(head, "predict", "%" PRIu64, b->predict) &&
        add(head, "stop", "%s", stops_text) &&
        add(head, "flags", "%s%s", b->ignore_eos ? "ignore-eos " : "",
            b->no_special ? "no-special" : "") &&
        add(head, "date", "%" PRId64, (int64_t)now);
    cJSON_free(stops_text);
    if (!ok) {
        cJSON_Delete(head);
        return NULL;
    }
    return head;
}

// The time that templates take for today: that of the first start, if there was one.
static time_t start_time(const struct batch *b)
{
    char text[8192] = {0};
    ssize_t n = pread(b->part.fd, text, sizeof text - 1, 0);
    const char *date = n > 0 ? strstr(text, "\"date\":\"") : NULL;
    time_t first = date ? (time_t)strtoll(date + 8, NULL, 10) : 0;
    return first > 0 ? first : time(NULL);
}

static int open_with(struct batch *b, struct inst_msg *msg)
{
    struct inst_options *o = &b->engine.engine;
    o->chat = b->template ? b->template : "auto";
    int err = inst_engine_open(&b->e, o, msg);
    if (err != INST_ENOCHAT || b->template)
        return err;
    b->no_chat = true;
    msg->text[0] = 0;
    o->chat = NULL;
    return inst_engine_open(&b->e, o, msg);
}

static size_t lines_left(const struct batch *b)
{
    return b->shares ? (b->lines.n + b->shares - b->share) / b->shares : b->lines.n;
}

// With as many sessions as memory has room for, up to what is of use.
static int open_engine(struct batch *b, time_t now)
{
    struct inst_options *o = &b->engine.engine;
    int code = engine_options_read(&b->engine, "batch");
    if (code)
        return code;
    // The table of lines is ours, and lies in the same memory.
    uint64_t own = b->lines.room * sizeof *b->lines.line + 2 * (uint64_t)b->lines.text_room;
    if (o->memory && o->memory <= own)
        return fail(EXIT_FAILED, "--memory is too small for a table of %zu lines", b->lines.n);
    trace_file_engine(&b->trace, o);
    uint64_t json = o->memory ? o->memory / JSON_SHARE : JSON_MOST;
    batch_request_limit(json < JSON_MOST ? json : JSON_MOST);
    o->memory -= o->memory ? own : 0;
    o->chat_time = now;
    bool asked = b->parallel;
    while (!asked && b->parallel < PARALLEL_MOST && b->parallel < lines_left(b))
        b->parallel = b->parallel ? 2 * b->parallel : 1;
    for (;;) {
        struct inst_msg msg = {0};
        o->max_sessions = b->parallel;
        int err = open_with(b, &msg);
        if (!err)
            break;
        if (asked || b->parallel == 1 || (err != INST_ENOMEM && err != INST_ENOSPC))
            return failed(err, &msg);
        b->parallel /= 2;
    }
    inst_engine_info(b->e, &b->info);
    engine_notes(&b->info, 0);
    struct inst_msg msg = {0};
    const struct inst_scheduler_options scheduler = {
        .size = sizeof scheduler, .chunk = b->info.chunk, .independent = true};
    int err = inst_scheduler_open(&b->scheduler, b->e, &scheduler, &msg);
    return err ? failed(err, &msg) : 0;
}

static int note_answer(void *user, uint32_t number, uint64_t offset, const char *answer,
                       size_t bytes)
{
    static const char error[] = ",\"response\":null,\"error\":{";
    struct batch *b = user;
    struct batch_line *line = batch_lines_find(&b->lines, number);
    if (!line || !batch_is_ours(b, (size_t)(line - b->lines.line)) || line->result)
        return fail(EXIT_FAILED, "%s: it answers line %" PRIu32 ", which is not to be answered",
                    b->part.path, number);
    line->result = offset;
    b->errors += memmem(answer, bytes, error, sizeof error - 1) != NULL;
    return 0;
}

static int open_all(struct batch *b, const struct options *options)
{
    char model[64];
    if (!b->engine.engine.model)
        return fail(EXIT_USAGE, "batch: no model given: use -m MODEL");
    int code = name_files(b);
    if (!code)
        code = batch_part_open(&b->part, b->part_path);
    if (!code)
        code = check_output(b, options);
    if (!code)
        code = batch_lines_open(&b->lines, b->input);
    time_t now = code ? 0 : start_time(b);
    if (!code)
        code = open_engine(b, now);
    if (!code)
        code = print_model(b->engine.engine.model, model);
    if (!code)
        code = batch_part_begin(&b->part, make_head(b, model, now));
    if (!code)
        code = batch_part_each(&b->part, note_answer, b);
    return code ? code : batch_part_cut(&b->part);
}

// A share's answers are a part for --merge; all answers are the output.
static int finish(struct batch *b, const struct options *options)
{
    int code = batch_lines_unchanged(&b->lines);
    if (code)
        return code;
    if (b->shares) {
        if (!fdatasync(b->part.fd) && !rename(b->part_path, b->out.path))
            return 0;
        return fail(EXIT_FAILED, "%s: %s", b->out.path, strerror(errno));
    }
    code = batch_write(b, options);
    if (!code && unlink(b->part_path))
        code = fail(EXIT_FAILED, "%s: %s", b->part_path, strerror(errno));
    return code;
}

// What has happened to drives, and the statistics where they were asked for.
static int report(struct batch *b)
{
    struct inst_msg msg = {0};
    size_t notes = b->info.n_notes;
    meter_sample(&b->meter, true);
    b->result.peak_memory = b->meter.peak;
    b->result.seed = b->sampling.seed;
    int err = stats_take(b->e, &b->info, &b->result, &msg);
    engine_notes(&b->info, notes);
    if (!b->stats.stream)
        return 0;
    return err ? failed(err, &msg) : stats_json_write(&b->stats, &b->info, &b->result, NULL, 0);
}

static int batch_all(struct batch *b, const struct options *options, char **operands, int n)
{
    int code = 0;
    if (b->merge) {
        if (!n)
            return fail(EXIT_USAGE, "batch: --merge: no parts given");
        if (!b->out.path)
            return fail(EXIT_USAGE, "batch: no output given: use -o FILE");
        return batch_merge(b, options, operands, (size_t)n);
    }
    if (n > 1)
        return fail(EXIT_USAGE, "batch: unexpected argument '%s'", operands[1]);
    code = read_share(b);
    if (!code)
        code = check_options(b, n ? operands[0] : NULL);
    if (code)
        return code;
    b->defaults = (struct batch_defaults){.sampling = b->sampling,
                                          .max_tokens = b->predict,
                                          .stops = b->stops.items,
                                          .n_stops = b->stops.n,
                                          .ignore_end = b->ignore_eos};
    code = open_all(b, options);
    if (!code) {
        terminal_first_line(&b->terminal, &b->info);
        code = batch_run(b);
        int wrote = !code || code == EXIT_INTERRUPTED ? report(b) : 0;
        code = code ? code : wrote;
    }
    code = code ? code : finish(b, options);
    int traced = code ? 0 : trace_file_close(&b->trace);
    return code ? code : traced;
}

int command_batch(int argc, char **argv)
{
    static struct batch b;
    b.predict = UINT64_MAX;
    b.lines.fd = -1;
    inst_sampling_default(&b.sampling);
    b.sampling.seed = 0;
    const struct option rows[] = {
        {"Requests and answers", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--file", 'f', OPTION_INPUT, &b.input, 0, 0, "IN.jsonl", "the same as IN.jsonl alone"},
        {"--output", 'o', OPTION_OUTPUT, &b.out, 0, 0, "OUT.jsonl",
         "answers, an error for each line that has one; the same command goes on where it ended"},
        {"--unordered", 0, OPTION_FLAG, &b.unordered, 0, 0, NULL,
         "answers as they are finished; default: in the order of the requests"},
        {"--part", 0, OPTION_TEXT, &b.part_path, 0, 0, "FILE",
         "where finished answers are kept meanwhile; default: OUT.jsonl.part"},
        {"--share", 0, OPTION_TEXT, &b.share_text, 0, 0, "I/N",
         "only each N-th line, into OUT.jsonl.I-of-N; auto: as mpirun or Slurm says"},
        {"--merge", 0, OPTION_FLAG, &b.merge, 0, 0, NULL,
         "puts the parts of all shares, given as operands, together"},
        {"--parallel", 0, OPTION_U32, &b.parallel, 1, 4096, "N",
         "requests at a time; default: up to 32, as memory has room"},
        {"What a request does not say", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--predict", 'n', OPTION_U64, &b.predict, 1, 1e18, "N",
         "tokens to generate; default: until an end token or the context is full"},
        {"--no-special", 0, OPTION_FLAG, &b.no_special, 0, 0, NULL,
         "the texts of control tokens are ordinary text, as they always are in a conversation"},
        {"--stop", 0, OPTION_LIST, &b.stops, 0, 0, "TEXT",
         "ends before this text, a CR at its end left out; may be given several times"},
        {"--ignore-eos", 0, OPTION_FLAG, &b.ignore_eos, 0, 0, NULL, "goes on after end tokens"},
        {"--template", 0, OPTION_TEXT, &b.template, 0, 0, "NAME",
         "chat template by name; default: the model's"},
        SAMPLING_ROWS(b.sampling),
        {"--seed", 0, OPTION_U32, &b.sampling.seed, 0, UINT32_MAX, "S",
         "from it and its number a line gets its seed, which the answer names; default 0"},
        ENGINE_OPTION_ROWS(b.engine),
        {"Reports", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--stats", 0, OPTION_OUTPUT, &b.stats, 0, 0, "FILE.json",
         "counters of this run, those of before not included"},
        TRACE_ROWS(b.trace),
        {"--verbose", 'v', OPTION_FLAG, &b.verbose, 0, 0, NULL,
         "first line and summary even when stderr is no terminal"},
    };
    const struct options options = {"batch", "IN.jsonl | --merge PART...",
                                    "Answers the requests of a file in OpenAI's batch format.",
                                    rows, sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code)) {
        terminal_open(&b.terminal, b.verbose);
        code = batch_all(&b, &options, argv, n);
    }
    run_unwatch_interrupt();
    inst_scheduler_close(b.scheduler);
    inst_engine_close(b.e);
    options_free(&options);
    batch_part_close(&b.part);
    batch_lines_close(&b.lines);
    for (size_t i = 0; i < 2; i++)
        free(b.own_path[i]);
    free(b.unfinished);
    return code;
}
