// SPDX-License-Identifier: Apache-2.0
// Chat templates: what stands between the words of a conversation. A GGUF file carries its template
// as a program (Jinja). It is not run: a table knows the texts that people have, word for word, and
// what each renders; a text that is not in it is refused. A default system text of its own may be
// any. A conversation is rendered turn by turn, so that its earlier tokens never change: where an
// official template would move or cut what was said, docs/chat.md says what is done here.
#ifndef INST_HOST_MODEL_TEMPLATE_H
#define INST_HOST_MODEL_TEMPLATE_H

#include "host/model/tokenizer.h"

#include <time.h>

struct template_form; // a row of the table

// Zero-initialised: no template.
struct chat_template {
    const struct template_form *form;
    bool bos;            // the text begins with the begin token, whatever the vocabulary says
    bool opens_thinking; // an answer begins with a <think> that the template writes
    bool drops_thinking; // an answer's thinking goes when the next turn comes
    bool keeps_space;    // but not the white space behind it
    // For conversations without a system text: text of string literals, the date between them.
    struct gguf_string system[2];
    char date[32];
    char preamble[72]; // stands before every system text
};

// Finds out which format the template text is. The result points into the text. `today` is for
// templates that state the date. Unknown is INST_ENOCHAT, with the nearest one in the message.
int chat_template_recognise(struct chat_template *out, struct gguf_string text,
                            const struct tm *today, struct inst_msg *msg);
// The one that the file names, as `tokenizer.chat_template`; INST_ENOCHAT when there is none.
int chat_template_read(struct chat_template *out, const struct gguf *gguf, const struct tm *today,
                       struct inst_msg *msg);
// By name. "raw" has no words of its own.
int chat_template_named(struct chat_template *out, const char *name, struct inst_msg *msg);
const char *chat_template_name(const struct chat_template *chat); // NULL: none
void chat_template_names(char *out, size_t room);                 // all, with commas between them

struct chat_turn {
    bool first;
    const char *system; // first turn only; NULL: the template's, if it has one
    const char *text;   // what the user says; any bytes
    uint64_t bytes;
    // What was answered, word for word, without the space that some formats have before it; NULL:
    // the answer is to come.
    const char *answer;
    uint64_t answer_bytes;
};

// Text with its spans; zero-initialise with the budget set. The owner calls chat_text_free.
struct chat_text {
    char *text;
    uint64_t bytes, capacity;
    struct token_span *spans;
    uint64_t n_spans, span_capacity;
    struct budget *budget;
};
void chat_text_free(struct chat_text *text);

// Replaces *out by the text from the end of the previous answer (from the beginning in the first
// turn) to the start of the next one. Begin and end tokens stand in it by their names.
int chat_template_render(const struct chat_template *chat, const struct tokenizer *tokenizer,
                         const struct chat_turn *turn, struct chat_text *out, struct inst_msg *msg);
// Several turns that follow each other, and their answers: all but the last have one.
int chat_template_render_all(const struct chat_template *chat, const struct tokenizer *tokenizer,
                             const struct chat_turn *turns, uint64_t n, struct chat_text *out,
                             struct inst_msg *msg);
// The same as tokens, appended to the list; the begin token goes first exactly once.
int chat_template_encode(const struct chat_template *chat, const struct tokenizer *tokenizer,
                         const struct chat_turn *turn, struct token_list *list,
                         struct inst_msg *msg);
int chat_template_encode_all(const struct chat_template *chat, const struct tokenizer *tokenizer,
                             const struct chat_turn *turns, uint64_t n, struct token_list *list,
                             struct inst_msg *msg);

// What a conversation keeps of an answer that is complete: templates of thinking models drop the
// thoughts once the next turn comes. ids[answer, count) is the answer; returns the new count.
uint64_t chat_template_settle(const struct chat_template *chat, const struct tokenizer *tokenizer,
                              uint32_t *ids, uint64_t count, uint64_t answer);

#endif
