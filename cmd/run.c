// SPDX-License-Identifier: Apache-2.0
// instinfer run: stands on the public header alone, as any other program could.
#include "cmd/run.h"
#include "cmd/commands.h"
#include "cmd/input.h"
#include "cmd/stats_json.h"

#include <stdlib.h>
#include <string.h>

// The prompt's ids, with room for all that the context can hold after them.
static int read_prompt(struct run *r)
{
    struct input input;
    struct inst_msg msg = {0};
    int32_t *tokens = NULL;
    size_t n = 0, n_max;
    struct text_room room = text_room_of_engine(r->e, r->info.context, r->info.context);
    int code = input_open(&input, "run", r->prompt, r->file, &room);
    if (code)
        return code;
    code = inst_tokenize(r->e, input.text, input.bytes,
                         r->no_special ? INST_TOKENIZE_NO_SPECIAL : 0u, &tokens, &n, &msg);
    meter_sample(&r->meter, true);
    input_close(&input);
    if (code)
        return failed(code, &msg);
    if (!n || n > r->info.context) {
        free(tokens);
        if (!n)
            return fail(EXIT_FAILED, "the prompt has no tokens");
        return fail(EXIT_FAILED,
                    "the prompt of %zu tokens does not fit in the context of %llu (see -c)", n,
                    (unsigned long long)r->info.context);
    }
    input_check_begin(r->info.begin_token, tokens, n);
    uint64_t left = r->info.context - n;
    n_max = n + (size_t)(r->predict < left ? r->predict : left);
    r->tokens = realloc(tokens, n_max * sizeof *tokens);
    if (!r->tokens) {
        free(tokens);
        return fail(EXIT_FAILED, "out of memory");
    }
    r->n_tokens = r->result.prompt_tokens = n;
    return 0;
}

static int check_chat(const struct run *r)
{
    const char *name = r->system ? "--system" : r->template ? "--template" : "--raw";
    if (!r->chat && (r->system || r->template || r->raw))
        return fail(EXIT_USAGE, "run: %s is of a conversation: it needs --chat", name);
    if (r->raw && (r->system || r->template))
        return fail(EXIT_USAGE, "run: --raw is without a template: it goes without %s", name);
    return 0;
}

static int open_engine(struct run *r)
{
    struct engine_options *o = &r->engine;
    if (r->chat)
        o->engine.chat = r->raw ? "raw" : r->template ? r->template : "auto";
    trace_file_engine(&r->trace, &o->engine);
    int code = engine_options_open(&r->e, o, "run");
    if (!code)
        inst_engine_info(r->e, &r->info);
    return code;
}

static int open_all(struct run *r, const struct options *options)
{
    struct inst_msg msg = {0};
    int code = check_chat(r);
    if (code)
        return code;
    code = stops_check(&r->stops, "run");
    if (code)
        return code;
    if (!r->prompt == !r->file && (r->file || !r->chat))
        return fail(EXIT_USAGE, r->file
                                    ? "run: give either -p or -f, not both"
                                    : "run: no prompt given: use -p TEXT or -f FILE (- = stdin)");
    code = output_files_open(options);
    if (!code)
        code = open_engine(r);
    if (code)
        return code;
    terminal_first_line(&r->terminal, &r->info);
    code = r->chat ? 0 : read_prompt(r);
    if (code)
        return code;
    const struct inst_scheduler_options scheduler = {.size = sizeof scheduler, .sessions = 1};
    int err = inst_scheduler_open(&r->scheduler, r->e, &scheduler, &msg);
    if (!err)
        err = inst_sampler_open(&r->sampler, r->e, &r->sampling, &msg);
    return err ? failed(err, &msg) : 0;
}

static int run_all(struct run *r, const struct options *options)
{
    int code = open_all(r, options);
    if (code)
        return code;
    // The first Ctrl-C ends cleanly, a second one at once; in a chat each ends an answer.
    run_watch_interrupt(r->e, r->chat);
    r->result.stop_reason = "none";
    r->result.seed = r->sampling.seed;
    code = r->chat ? chat_run(r) : run_generate(r);
    terminal_end_progress(&r->terminal);
    if (r->output.error && !code)
        code = fail(EXIT_FAILED, "standard output: %s", strerror(r->output.error));
    meter_sample(&r->meter, true);
    r->result.peak_memory = r->meter.peak;
    struct inst_msg msg = {0};
    size_t notes = r->info.n_notes;
    int err = stats_take(r->e, &r->info, &r->result, &msg);
    engine_notes(&r->info, notes);
    if (err && !code)
        code = failed(err, &msg);
    if (r->terminal.lines && !r->output.newline)
        fputc('\n', stderr);
    terminal_summary(&r->terminal, &r->result);
    if (!code && run_interrupted() && !r->chat)
        code = EXIT_INTERRUPTED;
    // What failed leaves the last run's statistics.
    if (r->stats.stream && (!code || code == EXIT_INTERRUPTED)) {
        int wrote = stats_json_write(&r->stats, &r->info, &r->result, r->tokens, r->n_tokens);
        code = code ? code : wrote;
    }
    int traced = !code || code == EXIT_INTERRUPTED ? trace_file_close(&r->trace) : 0;
    code = code ? code : traced;
    return code;
}

int command_run(int argc, char **argv)
{
    static struct run r;
    r.predict = UINT64_MAX;
    inst_sampling_default(&r.sampling);
    const struct option rows[] = {
        {"Text", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--prompt", 'p', OPTION_TEXT, &r.prompt, 0, 0, "TEXT", "the prompt"},
        {"--file", 'f', OPTION_INPUT, &r.file, 0, 0, "FILE",
         "prompt from a file, - = stdin; UTF-8, a byte order mark is left out, CR LF stays"},
        {"--predict", 'n', OPTION_U64, &r.predict, 0, 1e18, "N",
         "tokens to generate; default: until an end token or the context is full"},
        {"--no-special", 0, OPTION_FLAG, &r.no_special, 0, 0, NULL,
         "the texts of control tokens are ordinary text, as they always are in a conversation"},
        {"--stop", 0, OPTION_LIST, &r.stops, 0, 0, "TEXT",
         "ends before this text, a CR at its end left out; may be given several times"},
        {"--ignore-eos", 0, OPTION_FLAG, &r.ignore_eos, 0, 0, NULL, "goes on after end tokens"},
        {"Conversation", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--chat", 0, OPTION_FLAG, &r.chat, 0, 0, NULL,
         "turns from the terminal or, line by line, from a pipe; with -p or -f just one"},
        {"--system", 0, OPTION_TEXT, &r.system, 0, 0, "TEXT", "the system text"},
        {"--template", 0, OPTION_TEXT, &r.template, 0, 0, "NAME",
         "chat template by name; default: the model's"},
        {"--raw", 0, OPTION_FLAG, &r.raw, 0, 0, NULL,
         "no template: the model just goes on with the text"},
        ENGINE_OPTION_ROWS(r.engine),
        {"Sampling", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        SAMPLING_ROWS(r.sampling),
        {"--seed", 0, OPTION_U32, &r.sampling.seed, 0, UINT32_MAX, "S",
         "default: random, reported in --stats"},
        {"Reports", 0, OPTION_HEADING, NULL, 0, 0, NULL, NULL},
        {"--stats", 0, OPTION_OUTPUT, &r.stats, 0, 0, "FILE.json", "counters and token ids"},
        TRACE_ROWS(r.trace),
        {"--verbose", 'v', OPTION_FLAG, &r.verbose, 0, 0, NULL,
         "first line and summary even when stderr is no terminal"},
    };
    const struct options options = {"run", NULL, "Generates text; only that goes to stdout.", rows,
                                    sizeof rows / sizeof *rows};
    int n, code;
    if (options_parse(&options, argc, argv, &n, &code)) {
        terminal_open(&r.terminal, r.verbose);
        output_open(&r.output);
        code = run_all(&r, &options);
    }
    run_unwatch_interrupt();
    inst_sampler_close(r.sampler);
    inst_scheduler_close(r.scheduler);
    inst_engine_close(r.e);
    free(r.tokens);
    options_free(&options);
    return code;
}
