// SPDX-License-Identifier: Apache-2.0
// The smallest program with libinstinfer: greedy text after a prompt.
//   cc generate.c $(pkg-config --cflags --libs instinfer)
//   ./a.out MODEL.gguf "Once upon a time"
#include <instinfer.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 32 };

static int fail(const struct inst_msg *msg)
{
    fprintf(stderr, "%s\n", msg->text);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return fprintf(stderr, "usage: %s MODEL PROMPT\n", argv[0]), 2;
    struct inst_msg msg = {0};
    // KV goes to memory here; leave kv out and it goes to a file in the cache directory.
    const char *kv = "ram:16M";
    struct inst_options options = {.model = argv[1], .kv = &kv, .n_kv = 1};
    struct inst_sampling sampling;
    inst_sampling_default(&sampling);
    sampling.temperature = 0;

    inst_engine *engine;
    inst_session *session;
    inst_sampler *sampler;
    int32_t *prompt;
    size_t n;
    if (inst_engine_open(&engine, &options, &msg) || inst_session_open(&session, engine, &msg) ||
        inst_sampler_open(&sampler, engine, &sampling, &msg) ||
        inst_tokenize(engine, argv[2], strlen(argv[2]), 0, &prompt, &n, &msg))
        return fail(&msg);
    int32_t *tokens = realloc(prompt, (n + TOKENS) * sizeof *tokens);
    if (!tokens)
        return 1;
    for (int i = 0; i < TOKENS; i++) {
        // The whole prefix every time: what is already in the drive costs nothing.
        struct inst_prefix prefix = {.session = session, .tokens = tokens, .n_tokens = n};
        if (inst_sync(engine, &prefix, 1, NULL, NULL, &msg))
            return fail(&msg);
        int32_t token = inst_sample(sampler, session, tokens, n);
        if (inst_token_is_end(engine, token))
            break;
        size_t bytes;
        const char *text = inst_token_text(engine, token, &bytes);
        fwrite(text, 1, bytes, stdout);
        tokens[n++] = token;
    }
    putchar('\n');
    free(tokens);
    inst_sampler_close(sampler);
    inst_engine_close(engine);
    return 0;
}
