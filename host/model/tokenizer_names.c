// SPDX-License-Identifier: Apache-2.0
// Tokens that mean something by their name or by a key of the file, beyond the type that it gives
// them: ends of a generation, structure of chats, marks for filling in the middle of a text.
#include "host/model/tokenizer_internal.h"

#include <string.h>
#include <strings.h>

// Tokens that mean something by their name, whatever type the file gives them. Names that stand for
// an end of generation in one model family are no text in another, so one list serves all.
static const struct {
    const char *text;
    uint8_t set; // attributes added
} known_tokens[] = {
    {"</s>", TOKEN_CONTROL | TOKEN_END},
    {"<eos>", TOKEN_CONTROL | TOKEN_END},
    {"<|eot_id|>", TOKEN_CONTROL | TOKEN_END},
    {"<|eom_id|>", TOKEN_CONTROL | TOKEN_END},
    {"<|im_end|>", TOKEN_CONTROL | TOKEN_END},
    {"<|end|>", TOKEN_CONTROL | TOKEN_END},
    {"<|return|>", TOKEN_CONTROL | TOKEN_END},
    {"<|call|>", TOKEN_CONTROL | TOKEN_END},
    {"<|flush|>", TOKEN_CONTROL | TOKEN_END},
    {"<|calls|>", TOKEN_CONTROL | TOKEN_END},
    {"<end_of_turn>", TOKEN_CONTROL | TOKEN_END},
    {"<turn|>", TOKEN_CONTROL | TOKEN_END},
    {"<|tool_response>", TOKEN_CONTROL | TOKEN_END},
    {"<end_of_utterance>", TOKEN_CONTROL | TOKEN_END},
    {"<|endoftext|>", TOKEN_CONTROL | TOKEN_END},
    {"<|end_of_text|>", TOKEN_CONTROL | TOKEN_END},
    {"<EOT>", TOKEN_CONTROL | TOKEN_END},
    {"_<EOT>", TOKEN_CONTROL | TOKEN_END},
    {"[EOT]", TOKEN_CONTROL | TOKEN_END},
    {"[EOS]", TOKEN_CONTROL | TOKEN_END},
    {"[e~[", TOKEN_CONTROL | TOKEN_END},
    {"<\xef\xbd\x9c"
     "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
     TOKEN_CONTROL | TOKEN_END},
};

// What structures chats beside the ends above. Files give these any type; that of user-defined
// tokens, which are found in every text, must not let a stranger's words become structure.
static const char *const markers[] = {
    "<s>",
    "<|im_start|>",
    "<|im_sep|>",
    "<|start_header_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end_header_id|>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "<|python_tag|>",
    "[/AVAILABLE_TOOLS]",
    "<start_of_turn>",
};

// Tokens for filling in the middle of a text: a key names them or, where it is absent, the first
// of these names that is there. Three of them also end generation.
static const struct {
    const char *key;
    uint8_t set;
    const char *names[10];
} fill_tokens[] = {
    {"tokenizer.ggml.fim_pre_token_id",
     TOKEN_CONTROL,
     {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "\xe2\x96\x81<PRE>",
      "<|code_prefix|>", "<|prefix|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "begin\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_suf_token_id",
     TOKEN_CONTROL,
     {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "\xe2\x96\x81<SUF>",
      "<|code_suffix|>", "<|suffix|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "hole\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_mid_token_id",
     TOKEN_CONTROL,
     {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\xe2\x96\x81<MID>",
      "<|code_middle|>", "<|middle|>",
      "<\xef\xbd\x9c"
      "fim\xe2\x96\x81"
      "end\xef\xbd\x9c>"}},
    {"tokenizer.ggml.fim_pad_token_id",
     TOKEN_CONTROL | TOKEN_END,
     {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    {"tokenizer.ggml.fim_rep_token_id",
     TOKEN_CONTROL | TOKEN_END,
     {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    {"tokenizer.ggml.fim_sep_token_id", TOKEN_CONTROL | TOKEN_END, {"<|file_sep|>"}},
};

static uint32_t find_name(const struct tokenizer *t, const char *name)
{
    return tokenizer_find(t, name, strlen(name));
}

static int mark_special(struct tokenizer *t, struct inst_msg *msg)
{
    static const char *const ends[] = {"tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    // The message tokens of harmony-style chats are always printed.
    static const char *const shown[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};
    for (size_t i = 0; i < sizeof fill_tokens / sizeof *fill_tokens; i++) {
        uint32_t id = TOKENIZER_NONE;
        int rc = vocab_read_id(t, fill_tokens[i].key, &id, msg);
        if (rc)
            return rc;
        if (id != TOKENIZER_NONE) {
            t->attribute[id] |= fill_tokens[i].set & TOKEN_END;
            continue;
        }
        for (size_t j = 0; fill_tokens[i].names[j] && id == TOKENIZER_NONE; j++)
            id = find_name(t, fill_tokens[i].names[j]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= fill_tokens[i].set;
    }
    for (size_t i = 0; i < sizeof known_tokens / sizeof *known_tokens; i++) {
        uint32_t id = find_name(t, known_tokens[i].text);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= known_tokens[i].set;
    }
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        uint32_t id = find_name(t, shown[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] = TOKEN_USER | TOKEN_MARKER;
    }
    for (size_t i = 0; i < sizeof markers / sizeof *markers; i++) {
        uint32_t id = find_name(t, markers[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= TOKEN_MARKER;
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        uint32_t id = TOKENIZER_NONE;
        int rc = vocab_read_id(t, ends[i], &id, msg);
        if (rc)
            return rc;
        if (id != TOKENIZER_NONE)
            t->attribute[id] |= TOKEN_END;
    }
    if (t->eos != TOKENIZER_NONE)
        t->attribute[t->eos] |= TOKEN_END;
    return 0;
}

// In the files of the Phi-3 family special tokens swallow the white space behind them, which no key
// says; they are known by the model's name.
static int mark_rstrip(struct tokenizer *t, struct inst_msg *msg)
{
    struct gguf_string name = {"", 0};
    bool phi3 = false;
    int rc = gguf_get_string(t->gguf, "general.name", GGUF_OPTIONAL, &name, msg);
    for (uint64_t i = 0; i + 4 <= name.bytes && !phi3; i++) {
        uint64_t dash = name.data[i + 3] == '-' && i + 5 <= name.bytes;
        phi3 = !strncasecmp(name.data + i, "phi", 3) && name.data[i + 3 + dash] == '3';
    }
    if (rc || !phi3)
        return rc;
    for (uint32_t id = 0; id < t->count; id++)
        if (t->attribute[id] & TOKEN_SPECIAL)
            t->attribute[id] |= TOKEN_RSTRIP;
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof keep / sizeof *keep; i++) {
        uint32_t id = find_name(t, keep[i]);
        if (id != TOKENIZER_NONE)
            t->attribute[id] &= (uint8_t)~TOKEN_RSTRIP;
    }
    return 0;
}

int names_mark(struct tokenizer *t, struct inst_msg *msg)
{
    int rc = mark_special(t, msg);
    return rc ? rc : mark_rstrip(t, msg);
}
