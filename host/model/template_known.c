// SPDX-License-Identifier: Apache-2.0
// The template texts that are known word for word, by their print, and what each of them renders.
// tests/data/templates has them; tests/host/model_template.c holds every row against Jinja. A text
// that is in no row is refused, however near it looks: a newline or a role name more or less is
// another format, and a model that reads another format than it was taught answers badly, without
// a word. Dates are those of templates that state one.
#include "host/model/template.h"
#include "host/model/template_text.h"

#include <stdio.h>
#include <string.h>

enum { NOWHERE, IN_SYSTEM, IN_VARIABLE, BEFORE_TODAY, BEHIND_ELSE, PLACES };

// Where templates have a system text of their own, see template_text.h.
static const struct template_place places[PLACES] = {
    [IN_SYSTEM] = {"", "<|im_start|>system\n", "<|im_end|>", NULL},
    [IN_VARIABLE] = {"default_system_message=", "", "", NULL},
    [BEFORE_TODAY] = {"default_system_message=", "", "", "+today+"},
    [BEHIND_ELSE] = {"else" TEMPLATE_END TEMPLATE_VARIABLE, "", "", NULL},
};

enum {
    BEGINS = 1, // with the begin token
    OPENS_THINKING = 2,
    DROPS_THINKING = 4,
    KEEPS_SPACE = 8,
    LLAMA_2024 = 16,  // Llama 3.1's preamble with the date of its making
    LLAMA_TODAY = 32, // with today's
    GRANITE_3 = 64,   // its own system text states the date
};

static const struct known {
    uint64_t print;
    const char *form;
    unsigned place, has;
} known[] = {
    // phi-4
    {0xf5611dac090980c3, "phi4", NOWHERE, 0},
    // unsloth-phi-4
    {0xc137dcdd3a9b55d9, "phi4", NOWHERE, 0},
    // Phi-4-mini-instruct
    {0xbb9e52245a3e4df2, "phi4-mini", NOWHERE, 0},
    // LFM2-8B-A1B
    {0xe46f81d34339b494, "chatml", NOWHERE, BEGINS},
    // Mistral-7B-OpenOrca
    {0xfef689204d151548, "chatml", NOWHERE, 0},
    // Nous-Hermes-2-Mixtral-8x7B-DPO
    {0x22f7aa02571e341c, "chatml", NOWHERE, BEGINS},
    // QwQ-32B
    {0x170d555c6de2ad56, "chatml", NOWHERE, OPENS_THINKING | DROPS_THINKING},
    // Qwen2.5-7B-Instruct
    {0x284915c337a5f147, "chatml", IN_SYSTEM, 0},
    // Qwen3-0.6B
    {0x48d8ed6d270441f1, "chatml", NOWHERE, DROPS_THINKING},
    // Qwen1.5-7B-Chat
    {0x0cf0c3f202c97689, "chatml", IN_SYSTEM, 0},
    // Qwen2-7B-Instruct, SmolLM2-1.7B-Instruct
    {0x13eae6ac557831d2, "chatml", IN_SYSTEM, 0},
    // Qwen3-4B-Instruct-2507
    {0x981f4ba647c603a7, "chatml", NOWHERE, 0},
    // Qwen3-4B-Thinking-2507
    {0x997f1358d62f9dba, "chatml", NOWHERE, OPENS_THINKING | DROPS_THINKING},
    // Qwen3-8B
    {0xfd9cea48cb71ac57, "chatml", NOWHERE, DROPS_THINKING},
    // Qwen3-8B-GGUF
    {0x9909ae6e03f8dc0d, "chatml", NOWHERE, DROPS_THINKING},
    // dolphin-2.8-mistral-7b-v02
    {0xca8f6fbeaaeaa1ff, "chatml", NOWHERE, BEGINS},
    // teknium-OpenHermes-2.5-Mistral-7B
    {0x806b0a59894a8261, "chatml", NOWHERE, 0},
    // unsloth-Qwen3
    {0x58a55a70351e6a6b, "chatml", NOWHERE, DROPS_THINKING},
    // unsloth-Qwen3-Instruct
    {0x73be47c69e67be96, "chatml", NOWHERE, DROPS_THINKING},
    // Yi-1.5-34B-Chat
    {0xa40bcf2fc47297a9, "yi", NOWHERE, 0},
    // Mistral-7B-Instruct-v0.1
    {0xb3427ba396a9f020, "mistral-v0.1", NOWHERE, BEGINS},
    // Mistral-7B-Instruct-v0.2
    {0x164f01117a45c6e4, "mistral-v0.2", NOWHERE, BEGINS},
    // Mistral-7B-Instruct-v0.2, Mistral-7B-Instruct-v0.2
    {0xe0b8d1d4332d99ac, "mistral-v1", NOWHERE, BEGINS},
    // mistral-common-v1
    {0x8b6b680be459d877, "mistral-v1", NOWHERE, BEGINS},
    // Mistral-7B-Instruct-v0.3, Mistral-Large-Instruct-2407
    {0x7138eb8ee9514862, "mistral-v3", NOWHERE, BEGINS},
    // Mistral-7B-Instruct-v0.3-2
    {0x804a798a9b7e78de, "mistral-v3", NOWHERE, BEGINS},
    // Mistral-Nemo-Instruct-2407-2
    {0x07cc20858ad61564, "mistral-v3-tekken", NOWHERE, BEGINS},
    // Mistral-Nemo-Instruct-2407
    {0x78a1b3259c4a7885, "mistral-v3-tekken", NOWHERE, BEGINS},
    // Mistral-Large-Instruct-2411
    {0x3cb7f4a334de963c, "mistral-v7", NOWHERE, BEGINS},
    // Devstral-Small-2507
    {0x84f7fcb4b2357e0e, "mistral-v7-tekken", IN_VARIABLE, BEGINS},
    // Mistral-Small-24B-Instruct-2501
    {0xa1bb201d3c91dec4, "mistral-v7-tekken", BEFORE_TODAY, BEGINS},
    // Mistral-Small-3.2-24B-Instruct-2506
    {0x8054c704cb028b0e, "mistral-v7-tekken", BEFORE_TODAY, BEGINS},
    // CodeLlama-34b-Instruct-hf
    {0xb11f7e42c62d6ef6, "llama2", NOWHERE, BEGINS},
    // Llama-2-7b-chat-hf
    {0xa80090a8e5d2705c, "llama2", NOWHERE, BEGINS},
    // Phi-3-medium
    {0xb2564b7036af849f, "phi3", NOWHERE, 0},
    // Phi-3-mini
    {0xa930ed6d0411fd4e, "phi3", NOWHERE, BEGINS},
    // Phi-3-mini-4k-instruct, Phi-3-mini-4k-instruct-3
    {0x6d05eeb25b7a125a, "phi3", NOWHERE, 0},
    // Phi-3-mini-4k-instruct-2
    {0xb0c7a7292999566a, "phi3", NOWHERE, BEGINS},
    // Phi-3-small
    {0x94359f2ad392c298, "phi3", NOWHERE, BEGINS},
    // Phi-3.5-mini-instruct-2, Phi-3.5-mini-instruct
    {0x7af41f3f6c852b12, "phi3", NOWHERE, 0},
    // TinyLlama-1.1B-Chat-v1.0
    {0x550ab98998c540c5, "zephyr", NOWHERE, 0},
    // zephyr-7b-beta
    {0x3e8400f8d2d5b973, "zephyr", NOWHERE, 0},
    // Falcon3-7B-Instruct
    {0x89527730c7efed79, "falcon3", NOWHERE, 0},
    // Llama-3.1-Tulu-3-8B
    {0xbf5028f2b53e9f1e, "falcon3", NOWHERE, 0},
    // gemma-2-9b-it, google-gemma-2-2b-it
    {0x50ced45aa55eddf9, "gemma", NOWHERE, BEGINS},
    // gemma-3-1b-it, gemma-3-4b-it
    {0x1447961415b37912, "gemma", NOWHERE, BEGINS},
    // google-gemma-7b-it
    {0xa62e1188b56df858, "gemma", NOWHERE, 0},
    // Llama-3, Meta-Llama-3-8B-Instruct
    {0x7c971979f94eb942, "llama3", NOWHERE, BEGINS},
    // Llama-3.1-8B-Instruct-2, Llama-3.1-8B-Instruct, Llama-3.3-70B-Instruct
    {0x1b880e0ee10d941a, "llama3", NOWHERE, BEGINS | LLAMA_2024},
    // Llama-3.2-3B-Instruct-2, Llama-3.2-3B-Instruct-3, Llama-3.2-3B-Instruct
    {0xe6fbfa47a5542ec0, "llama3", NOWHERE, BEGINS | LLAMA_TODAY},
    // Meta-Llama-3-8B-Instruct-2
    {0x3a5bdaa8b1ef1f04, "llama3", NOWHERE, BEGINS},
    // DeepSeek-R1-0528-Qwen3-8B
    {0x45215dcc05bd72fc, "deepseek-r1", NOWHERE,
     BEGINS | OPENS_THINKING | DROPS_THINKING | KEEPS_SPACE},
    // DeepSeek-R1-Distill-Llama-8B, DeepSeek-R1-Distill-Llama-8B-2
    {0x5f2c288d62c9c6a0, "deepseek-r1", NOWHERE,
     BEGINS | OPENS_THINKING | DROPS_THINKING | KEEPS_SPACE},
    // DeepSeek-R1-Distill-Qwen-7B-old
    {0x870ce9a391fed3ac, "deepseek-r1", NOWHERE, BEGINS | DROPS_THINKING | KEEPS_SPACE},
    // granite-3.0-8b-instruct
    {0x32b6a98105837eb7, "granite", NOWHERE, 0},
    // granite-3.3-2b-instruct
    {0xdd5700bc23b0ee60, "granite", NOWHERE, GRANITE_3},
    // granite-4.0-micro
    {0x7148fb1ba62f17ad, "granite", IN_VARIABLE, 0},
    // granite-4.1
    {0xb4482f6448956d24, "granite", NOWHERE, 0},
    // vicuna-7b-v1.5
    {0x6ae295fb878d1174, "vicuna", BEHIND_ELSE, BEGINS},
    // vicuna-13b-v1.1
    {0x04c7f1703d4c83f9, "vicuna-lines", NOWHERE, 0},
    // Orca-Vicuna
    {0x84cc5ad2cd5016ac, "vicuna-orca", NOWHERE, 0},
};
enum { KNOWN = sizeof known / sizeof *known };

// Fragments that formats show by; the first whose fragments are there is the nearest.
static const struct {
    const char *form, *has[3], *lacks;
} marks[] = {
    {"phi4", {"<|im_start|>", "<|im_sep|>"}, NULL},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, NULL},
    {"mistral-v7", {"[INST] ", "[SYSTEM_PROMPT] "}, NULL},
    {"mistral-v7-tekken", {"[INST]", "[SYSTEM_PROMPT]"}, NULL},
    {"mistral-v1", {" [INST] ", " [/INST]"}, "<<SYS>>"},
    {"mistral-v3", {"[INST] ", "[AVAILABLE_TOOLS]"}, NULL},
    {"mistral-v3-tekken", {"[INST]", "[AVAILABLE_TOOLS]"}, NULL},
    {"llama2", {"[INST] ", "<<SYS>>"}, NULL},
    {"mistral-v0.1", {"[INST] ", " [/INST]", "eos_token + ' '"}, NULL},
    {"mistral-v0.2", {"[INST] ", " [/INST]"}, NULL},
    {"phi4-mini", {"<|assistant|>", "<|end|>", "'|>' + message['content']"}, NULL},
    {"phi3", {"<|assistant|>", "<|end|>"}, NULL},
    {"zephyr", {"<|user|>", "<|assistant|>", "message['content'] + eos_token }}"}, NULL},
    {"falcon3", {"<|user|>", "<|assistant|>"}, NULL},
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}, NULL},
    {"llama3", {"<|start_header_id|>", "<|end_header_id|>"}, NULL},
    {"deepseek-r1", {"<\xef\xbd\x9cUser\xef\xbd\x9c>"}, NULL},
    {"granite", {"<|start_of_role|>"}, NULL},
    {"vicuna-orca", {"USER:", "ASSISTANT:", "SYSTEM:"}, NULL},
    {"vicuna", {"USER:", "ASSISTANT:"}, NULL},
};

static bool has(struct gguf_string text, const char *fragment)
{
    return !fragment || memmem(text.data, text.bytes, fragment, strlen(fragment));
}

static const char *nearest(struct gguf_string text)
{
    for (size_t i = 0; text.bytes && i < sizeof marks / sizeof *marks; i++)
        if (has(text, marks[i].has[0]) && has(text, marks[i].has[1]) &&
            has(text, marks[i].has[2]) && !(marks[i].lacks && has(text, marks[i].lacks)))
            return marks[i].form;
    return NULL;
}

static const struct known *find_row(struct gguf_string text, struct template_own *own)
{
    for (unsigned place = 0; place < PLACES; place++) {
        *own = (struct template_own){0};
        if (place && !template_text_own(text, &places[place], own))
            continue;
        uint64_t print = template_text_print(text, place ? &places[place] : NULL, own);
        for (size_t i = 0; i < KNOWN; i++)
            if (known[i].place == place && known[i].print == print)
                return &known[i];
    }
    return NULL;
}

// What the row's template says of dates.
static void state_dates(struct chat_template *chat, const struct known *row, const struct tm *today)
{
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    static const char before[] = "Knowledge Cutoff Date: April 2024. Today's Date: ";
    static const char behind[] =
        ". You are Granite, developed by IBM. You are a helpful AI assistant.";
    const struct tm making = {.tm_mday = 26, .tm_mon = 6, .tm_year = 124};
    if (!today || row->has & LLAMA_2024)
        today = &making;
    const char *month = months[(unsigned)today->tm_mon % 12];
    int day = today->tm_mday % 100, year = (today->tm_year + 1900) % 10000;
    if (row->has & (LLAMA_2024 | LLAMA_TODAY))
        snprintf(chat->preamble, sizeof chat->preamble,
                 "Cutting Knowledge Date: December 2023\nToday Date: %02d %.3s %d\n\n", day, month,
                 year);
    if (row->has & GRANITE_3) {
        chat->system[0] = (struct gguf_string){before, sizeof before - 1};
        chat->system[1] = (struct gguf_string){behind, sizeof behind - 1};
        snprintf(chat->date, sizeof chat->date, "%s %02d, %d", month, day, year);
    }
    if (row->place == BEFORE_TODAY)
        snprintf(chat->date, sizeof chat->date, "%04d-%02d-%02d", year, today->tm_mon % 12 + 1,
                 day);
}

int chat_template_recognise(struct chat_template *out, struct gguf_string text,
                            const struct tm *today, struct inst_msg *msg)
{
    struct template_own own;
    const struct known *row = find_row(text, &own);
    const char *like = nearest(text);
    char names[512];
    *out = (struct chat_template){0};
    if (!row && like)
        return inst_fail(msg, INST_ENOCHAT,
                         "its chat template is none of those known word for word; nearest is '%s'",
                         like);
    chat_template_names(names, sizeof names);
    if (!row)
        return inst_fail(
            msg, INST_ENOCHAT,
            "its chat template is none of those known word for word, nor near one (%s)", names);
    int rc = chat_template_named(out, row->form, msg);
    if (rc)
        return rc;
    out->bos = row->has & BEGINS;
    out->opens_thinking = row->has & OPENS_THINKING;
    out->drops_thinking = row->has & DROPS_THINKING;
    out->keeps_space = row->has & KEEPS_SPACE;
    for (int i = 0; i < 2; i++)
        out->system[i] = own.part[i];
    state_dates(out, row, today);
    return 0;
}
