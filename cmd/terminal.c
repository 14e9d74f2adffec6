// SPDX-License-Identifier: Apache-2.0
#include "cmd/terminal.h"
#include "base/clock.h"
#include "base/size.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

double rate(double amount, double time)
{
    return time > 0 ? amount / time : 0;
}

// How good attention is: exact, or what its method captures and what audits have found.
enum { QUALITY_TEXT = 224 };
static const char *quality_text(const struct inst_stats *s, char out[QUALITY_TEXT])
{
    if (!s->n_method)
        return "attention exact";
    bool measured = inst_stats_method(s, "audits") > 0;
    double tokens = inst_stats_method(s, "audited_tokens");
    size_t n =
        (size_t)snprintf(out, QUALITY_TEXT, "captured mass %.3f, worst head %.3f (%s)",
                         inst_stats_method(s, measured ? "captured_mean" : "predicted_mean"),
                         inst_stats_method(s, measured ? "captured_worst" : "predicted_worst"),
                         measured ? "measured" : "predicted");
    if (tokens > 0)
        snprintf(out + n, QUALITY_TEXT - n,
                 "; KL to dense %.2g nats/token, at most %.2g; %.0f of %.0f tokens flipped",
                 inst_stats_method(s, "kl_mean"), inst_stats_method(s, "kl_worst"),
                 inst_stats_method(s, "flips"), tokens);
    return out;
}

// The same, of an engine that goes on, or "".
static const char *quality_now(inst_engine *e, char out[QUALITY_TEXT])
{
    struct inst_stats s;
    if (inst_engine_stats(e, &s, NULL) || !(inst_stats_method(&s, "audited_tokens") > 0))
        return "";
    return quality_text(&s, out);
}

void terminal_open(struct terminal *terminal, bool verbose)
{
    bool tty = isatty(STDERR_FILENO);
    *terminal = (struct terminal){.lines = tty || verbose,
                                  .bar = tty,
                                  .text_shown = isatty(STDOUT_FILENO),
                                  .opened = clock_seconds()};
}

void terminal_first_line(const struct terminal *terminal, const struct inst_model_info *info)
{
    // Said always: nobody shall take this text for the model's.
    if (strstr(info->kv_place, "null:"))
        fputs("instinfer: null drive: timing only, the text is meaningless\n", stderr);
    if (!terminal->lines)
        return;
    char weights[SIZE_TEXT_BYTES], memory[SIZE_TEXT_BYTES], limit[SIZE_TEXT_BYTES];
    fprintf(stderr,
            "%s: weights %s, memory %s, KV limit %s in %s (%s), context %llu, chunk %u, group %u, "
            "%u threads, %s%s%s\n",
            info->name, size_text(info->weight_bytes, weights), size_text(info->memory, memory),
            size_text(info->kv_limit, limit), info->kv_place, info->kv_path,
            (unsigned long long)info->context, info->chunk, info->group, info->threads,
            info->kernels, info->chat ? ", chat template " : "", info->chat ? info->chat : "");
}

void terminal_progress(struct terminal *terminal, uint64_t done, uint64_t total)
{
    enum { WIDTH = 30 };
    if (!terminal->bar || !total)
        return;
    double now = clock_seconds();
    if (terminal->bar_start <= 0)
        terminal->bar_start = terminal->bar_last = now;
    // Prompts that are done in a moment get no bar.
    if (now - terminal->bar_last < 0.1)
        return;
    terminal->bar_last = now;
    terminal->bar_shown = true;
    char bar[WIDTH + 1];
    int filled = (int)(done * WIDTH / total);
    memset(bar, ' ', WIDTH);
    memset(bar, '#', (size_t)filled);
    bar[WIDTH] = 0;
    fprintf(stderr, "\rprefill [%s] %llu/%llu tokens, %.0f tokens/s\033[K", bar,
            (unsigned long long)done, (unsigned long long)total,
            rate((double)done, now - terminal->bar_start));
}

// "3h 05m", "12m 40s", "8s"
static const char *time_text(double left, char out[32])
{
    uint64_t s = left < 1e9 ? (uint64_t)left : 1000000000;
    if (s >= 3600)
        snprintf(out, 32, "%lluh %02llum", (unsigned long long)(s / 3600),
                 (unsigned long long)(s / 60 % 60));
    else if (s >= 60)
        snprintf(out, 32, "%llum %02llus", (unsigned long long)(s / 60),
                 (unsigned long long)(s % 60));
    else
        snprintf(out, 32, "%llus", (unsigned long long)s);
    return out;
}

void terminal_generated(struct terminal *terminal, inst_engine *e, uint64_t tokens)
{
    char quality[QUALITY_TEXT];
    double now = clock_seconds();
    if (!terminal->bar || terminal->text_shown || now - terminal->bar_last < 0.2)
        return;
    terminal->bar_last = now;
    const char *text = quality_now(e, quality);
    if (!*text)
        return;
    terminal->bar_shown = true;
    fprintf(stderr, "\r%llu tokens; %s\033[K", (unsigned long long)tokens, text);
}

void terminal_batch(struct terminal *terminal, inst_engine *e, uint64_t done, uint64_t total,
                    uint64_t now, uint64_t tokens)
{
    char left[32], quality[QUALITY_TEXT];
    double time = clock_seconds();
    if (!terminal->bar || time - terminal->bar_last < 0.2)
        return;
    terminal->bar_last = time;
    terminal->bar_shown = true;
    double spent = time - terminal->opened;
    const char *text = quality_now(e, quality);
    fprintf(stderr, "\r%llu/%llu lines, %.1f tokens/s, %s left%s%s\033[K", (unsigned long long)done,
            (unsigned long long)total, rate((double)tokens, spent),
            now ? time_text(spent / (double)now * (double)(total - done), left) : "?",
            *text ? "; " : "", text);
}

void terminal_batch_summary(const struct terminal *terminal, inst_engine *e, uint64_t now,
                            uint64_t tokens)
{
    char spent[32], quality[QUALITY_TEXT];
    double time = clock_seconds() - terminal->opened;
    struct inst_stats s;
    bool known = !inst_engine_stats(e, &s, NULL);
    fprintf(stderr, "%llu lines, %llu tokens in %s, %.1f tokens/s%s%s\n", (unsigned long long)now,
            (unsigned long long)tokens, time_text(time, spent), rate((double)tokens, time),
            known ? "; " : "", known ? quality_text(&s, quality) : "");
}

void terminal_end_progress(struct terminal *terminal)
{
    if (terminal->bar_shown)
        fputs("\r\033[K", stderr);
    terminal->bar_shown = false;
    terminal->bar_start = 0;
}

// Emulated drives: what they would take beside what was measured.
static void print_emulated(const struct run_result *r)
{
    const struct inst_stats *s = &r->stats;
    uint64_t pages = 0, retries = 0, bad = 0;
    bool emulated = false;
    for (uint32_t i = 0; i < r->n_drives; i++) {
        const struct inst_drive_stats *d = &r->drives[i];
        emulated |= d->emulated;
        pages += d->read_pages;
        retries += d->read_retries;
        bad += d->grown_bad_blocks;
    }
    if (!emulated)
        return;
    // A drive that is held to the real time has no other.
    bool paced = s->decode_tokens && !(s->modelled_attention_seconds > 0);
    fprintf(stderr,
            "emulated drives: decode waits %.3g s for attention (%.3g s here); busy: flash %.3g s, "
            "engine %.3g s, link %.3g s; "
            "%llu pages read, %llu times again; %llu blocks gone bad\n",
            paced ? s->attention_seconds : s->modelled_attention_seconds, s->attention_seconds,
            s->modelled_flash_seconds, s->modelled_engine_seconds, s->modelled_link_seconds,
            (unsigned long long)pages, (unsigned long long)retries, (unsigned long long)bad);
}

void terminal_summary(const struct terminal *terminal, const struct run_result *r)
{
    if (!terminal->lines)
        return;
    const struct inst_stats *s = &r->stats;
    char per_token[SIZE_TEXT_BYTES], peak[SIZE_TEXT_BYTES], quality[QUALITY_TEXT];
    double decoded = (double)s->decode_tokens;
    uint64_t reads = s->decode_flash_read_bytes,
             audits = (uint64_t)inst_stats_method(s, "audit_read_bytes");
    reads -= audits < reads ? audits : reads;
    uint64_t each = s->decode_tokens ? reads / s->decode_tokens : 0;
    fprintf(
        stderr,
        "prompt %llu tokens, %.1f tokens/s; generated %llu tokens, %.1f tokens/s (%s); "
        "flash read %s per token, %.2f GB/s; WAF %.2f; peak memory %s; %s\n",
        (unsigned long long)r->prompt_tokens, rate((double)s->prefill_tokens, s->prefill_seconds),
        (unsigned long long)r->generated_tokens, rate(decoded, s->decode_seconds), r->stop_reason,
        size_text(each, per_token), rate((double)reads, s->attention_seconds) / 1e9, s->waf,
        size_text(r->peak_memory, peak), quality_text(s, quality));
    print_emulated(r);
}

// Value of "NAME:   N kB" in /proc/self/status.
static uint64_t status_bytes(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    return at ? strtoull(at + strlen(name), NULL, 10) * 1024 : 0;
}

void meter_sample(struct meter *meter, bool now)
{
    double t = clock_seconds();
    if (!now && t - meter->last < 0.005)
        return;
    meter->last = t;
    // No stdio: the meter must not add to what it measures.
    char text[4096];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return;
    text[n] = 0;
    uint64_t used = status_bytes(text, "RssAnon:") + status_bytes(text, "RssShmem:");
    if (used > meter->peak)
        meter->peak = used;
}
