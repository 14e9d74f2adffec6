// SPDX-License-Identifier: Apache-2.0
// One line of a batch file, as OpenAI's batch format has it, checked field by field: what is not
// known or not supported is refused by name, because to leave it out would change the answer. Knows
// neither engine nor files.
#ifndef INST_CMD_BATCH_REQUEST_H
#define INST_CMD_BATCH_REQUEST_H

#include "instinfer_generate.h"

#include <cjson/cJSON.h>

enum {
    BATCH_STOPS_MAX = 16,
    BATCH_CHOICES_MAX = 128,
    BATCH_LINE_MAX = 4 << 20, // bytes
};

enum batch_url { BATCH_COMPLETIONS, BATCH_CHAT };

struct batch_prompt {
    const char *text; // NULL: tokens
    int32_t *tokens;
    size_t n_tokens;
};

// What a line does not say.
struct batch_defaults {
    struct inst_sampling sampling;
    uint64_t max_tokens;
    const char *const *stops;
    size_t n_stops;
    bool ignore_end;
};

struct batch_request {
    cJSON *json;           // whose strings the others are, until it shrinks
    char *kept;            // and then these
    const char *custom_id; // NULL: there is none, or it is no text
    enum batch_url url;
    struct batch_prompt *prompts; // of completions
    size_t n_prompts;
    struct inst_chat_message *messages; // of a chat
    char **joined;                      // [n_messages] contents that came in parts, or NULL
    size_t n_messages;
    uint32_t n; // choices of each prompt
    bool seeded;
    struct inst_generation_options options;
    const char *stops[BATCH_STOPS_MAX];
};

struct batch_error {
    const char *code;
    char field[96]; // "body.temperature"; empty: about the whole line
    char text[256];
};

// False with *error filled; the request holds what was understood, custom_id above all. The caller
// frees it in either case.
bool batch_request_parse(struct batch_request *request, const char *line, size_t bytes,
                         const struct batch_defaults *defaults, struct batch_error *error);
void batch_request_free(struct batch_request *request);
// Gives the memory of JSON and prompts back, once they are tokens. False: out of memory.
bool batch_request_shrink(struct batch_request *request);

// JSON nodes take much more memory than their text ("[0,0,0"). A line that would need more than so
// many bytes of them is refused. 0: none is.
void batch_request_limit(size_t bytes);

#endif
