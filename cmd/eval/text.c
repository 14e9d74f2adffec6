// SPDX-License-Identifier: Apache-2.0
// Ledgers and journals. Every choice is drawn in the order in which corpus.py and tasks.py draw it,
// from the generator that Python's random.Random is.
#include "cmd/eval/text.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- Words -------------------------------------------------------------------------------------

// clang-format off
static const char *const words_attribute[] = {
    "weight", "tariff", "invoice", "permit", "seal", "berth", "volume", "deposit",
};
static const char *const words_adjective[] = {
    "amber", "ashen", "beaded", "bent", "blank", "bolted", "bright", "broad", "carved", "checked",
    "chipped", "coiled", "cracked", "creased", "crimson", "curved", "dented", "domed", "dyed",
    "etched", "faded", "flat", "floral", "folded", "fragile", "frosted", "gilded", "glossy",
    "hinged", "indigo", "inlaid", "jagged", "knotted", "laced", "latched", "linen", "maroon",
    "matte", "mossy", "mottled", "narrow", "oaken", "oblong", "ornate", "padded", "patched",
    "pewter", "pleated", "ribbed", "rusted", "scented", "slender", "spotted", "square", "stained",
    "striped", "tall", "teal", "tinted", "twisted", "varnished", "violet", "waxed", "woven",
};
static const char *const words_noun[] = {
    "anvil", "banner", "barrel", "basin", "basket", "bell", "bench", "bucket", "bundle",
    "cabinet", "canister", "carton", "cask", "chest", "cistern", "coffer", "crate", "cushion",
    "desk", "drum", "engine", "flask", "furnace", "globe", "hammock", "hamper", "harp", "jar",
    "keg", "ladder", "loom", "mattress", "mirror", "mortar", "net", "organ", "oven", "pallet",
    "parcel", "piano", "plough", "pump", "quilt", "rug", "sack", "saddle", "satchel", "scale",
    "sofa", "spindle", "stove", "tapestry", "tent", "trunk", "tub", "urn", "vase", "violin",
    "wagon", "wardrobe", "wheel", "winch", "whistle", "zither",
};
static const char *const words_person[] = {
    "clerk", "porter", "captain", "carter", "cooper", "broker", "purser", "pilot", "watchman",
    "surveyor", "merchant", "foreman", "sailor", "cook", "inspector", "rigger",
};
static const char *const words_mood[] = {
    "old", "young", "weary", "cheerful", "patient", "stern", "sleepy", "busy",
};
static const char *const words_place[] = {
    "quay", "pier", "wharf", "office", "yard", "gate", "ferry", "tavern", "slipway", "dock",
    "lighthouse", "jetty", "depot", "market",
};
static const char *const words_toward[] = {
    "near", "toward", "behind", "beside", "past", "across",
};
static const char *const words_went[] = {
    "strolled", "hurried", "limped", "rowed", "climbed", "wandered", "returned",
};
static const char *const words_handled[] = {
    "lifted", "moved", "measured", "counted", "cleaned", "opened", "repaired", "admired",
};
static const char *const words_stood[] = {
    "stood", "lay", "rested", "waited",
};
static const char *const words_ship[] = {
    "barge", "schooner", "steamer", "trawler", "brig", "lugger",
};
static const char *const words_came[] = {
    "landed", "sailed", "sank", "anchored",
};
static const char *const words_tool[] = {
    "rope", "lamp", "hook", "broom", "pencil", "bottle", "coat", "flag",
};
static const char *const words_hour[] = {
    "dawn", "noon", "dusk", "midnight",
};
static const char *const words_weather[] = {
    "storm", "fog", "frost", "rain",
};
// clang-format on

struct slot {
    const char *name;
    const char *const *words;
    uint32_t n;
};
#define SLOT(name)                                                                                 \
    {                                                                                              \
#name, words_##name, sizeof words_##name / sizeof *words_##name                            \
    }
static const struct slot slots[] = {SLOT(attribute), SLOT(adjective), SLOT(noun),   SLOT(person),
                                    SLOT(mood),      SLOT(place),     SLOT(toward), SLOT(went),
                                    SLOT(handled),   SLOT(stood),     SLOT(ship),   SLOT(came),
                                    SLOT(tool),      SLOT(hour),      SLOT(weather)};
enum { ATTRIBUTE, ADJECTIVE, NOUN, KEY_WORDS, PLACE = 5, SLOTS = sizeof slots / sizeof *slots };

// {name} is a word of that slot, a comma clings to the word before it.
static const char *const fillers[] = {
    "the {mood} {person} {went} {toward} the {place}",
    "the {person} {handled} the {adjective} {noun} {toward} the {place}",
    "at {hour} the {person} {went} {toward} the {place} with the {mood} {person}",
    "when the {ship} {came} , the {person} {handled} the {tool}",
    "the {adjective} {noun} {stood} {toward} the {place}",
    "the {person} asked about the {attribute} of the {noun}",
    ("after the {weather} , the {person} {handled} the {adjective} {tool} and {went} {toward} the "
     "{place}"),
};
enum { FILLERS = sizeof fillers / sizeof *fillers };

enum {
    THINGS = 64 * 64,
    MOST_FACTS = 8 * THINGS * 3 / 4,
    FACT_TOKENS = 12,
    VALUE_DIGITS = 4,
    VOTERS = 6,
    PASSAGE_WORDS = 12,
    CUE_WORDS = 3,
    SENTENCE = 256, // bytes, more than any has
};
_Static_assert(sizeof words_adjective / sizeof *words_adjective == 64 &&
                   sizeof words_noun / sizeof *words_noun == 64 &&
                   sizeof words_attribute / sizeof *words_attribute == 8,
               "as MOST_FACTS says");

// ---- Dice: the Mersenne Twister, seeded and read as Python does
// ----------------------------------

enum { TWISTER = 624 };

struct dice {
    uint32_t state[TWISTER];
    size_t at;
};

static void dice_seed(struct dice *d, uint32_t seed)
{
    uint32_t *s = d->state;
    s[0] = 19650218;
    for (uint32_t i = 1; i < TWISTER; i++)
        s[i] = 1812433253u * (s[i - 1] ^ s[i - 1] >> 30) + i;
    size_t i = 1;
    for (size_t k = 0; k < TWISTER; k++) { // a key of one word
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1664525u) + seed;
        if (++i == TWISTER) {
            s[0] = s[TWISTER - 1];
            i = 1;
        }
    }
    for (size_t k = 0; k < TWISTER - 1; k++) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * 1566083941u) - (uint32_t)i;
        if (++i == TWISTER) {
            s[0] = s[TWISTER - 1];
            i = 1;
        }
    }
    s[0] = 0x80000000u;
    d->at = TWISTER;
}

static uint32_t dice_word(struct dice *d)
{
    uint32_t *s = d->state;
    if (d->at == TWISTER) {
        for (size_t i = 0; i < TWISTER; i++) {
            uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % TWISTER] & 0x7fffffffu);
            s[i] = s[(i + 397) % TWISTER] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        d->at = 0;
    }
    uint32_t y = s[d->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static double roll(struct dice *d)
{
    double high = dice_word(d) >> 5, low = dice_word(d) >> 6;
    return (high * 67108864 + low) / 9007199254740992;
}

static size_t below(struct dice *d, size_t limit)
{
    return (size_t)(roll(d) * (double)limit);
}

// The first n of items in random order.
static void sample(struct dice *d, uint32_t *items, size_t of, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t j = i + below(d, of - i);
        uint32_t item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}

// ---- A document in the making ------------------------------------------------------------------

struct key {
    uint32_t word[KEY_WORDS];
};
struct fact {
    struct key key;
    char value[VALUE_DIGITS + 1];
};
struct link {
    uint32_t adjective, noun, fact;
};
struct voter {
    uint32_t adjective, noun, place[2];
    double lean;
    size_t count[2];
};
struct passage {
    uint32_t word[PASSAGE_WORDS]; // adjectives, then nouns
};

struct mix {
    double facts, links, votes, passages; // shares of the sentences; the rest is filler
};
static const struct mix mixes[EVAL_TASKS] = {
    [EVAL_recall] = {.facts = 0.6},
    [EVAL_keys] = {.facts = 0.6},
    [EVAL_hop] = {.facts = 0.5, .links = 0.25},
    [EVAL_vote] = {.facts = 0.1, .votes = 0.8},
    [EVAL_copy] = {.facts = 0.2, .passages = 0.5},
};

struct writer {
    struct dice dice;
    enum eval_task task;
    char *text;
    size_t bytes, room, tokens;
    char sentence[SENTENCE];
    size_t sentence_tokens;
    struct fact *facts;
    struct link *links;
    struct passage *passages;
    size_t n_facts, n_links, n_passages, room_facts, room_links, room_passages;
    unsigned char taken[8 * THINGS], linked[THINGS];
    struct voter voter[VOTERS];
};

static const char *word(size_t slot, size_t i)
{
    return slots[slot].words[i];
}

// Makes room for one more. False: out of memory.
static bool grow(void *items, size_t n, size_t *room, size_t size)
{
    void **array = items;
    if (n < *room)
        return true;
    size_t more = *room ? 2 * *room : 64;
    void *moved = realloc(*array, more * size);
    if (!moved)
        return false;
    *array = moved;
    *room = more;
    return true;
}

static size_t thing_of(uint32_t adjective, uint32_t noun)
{
    return adjective * (size_t)64 + noun;
}

static unsigned char *taken(struct writer *w, const struct key *key)
{
    return &w->taken[key->word[ATTRIBUTE] * (size_t)THINGS +
                     thing_of(key->word[ADJECTIVE], key->word[NOUN])];
}

static void put_fact(struct writer *w, const struct fact *f)
{
    const uint32_t *k = f->key.word;
    snprintf(w->sentence, SENTENCE, "the %s of the %s %s is %s.", word(ATTRIBUTE, k[ATTRIBUTE]),
             word(ADJECTIVE, k[ADJECTIVE]), word(NOUN, k[NOUN]), f->value);
    w->sentence_tokens = FACT_TOKENS;
}

static void put_filler(struct writer *w)
{
    const char *p = fillers[below(&w->dice, FILLERS)];
    char *out = w->sentence;
    for (w->sentence_tokens = 1; *p; w->sentence_tokens++) {
        const char *chosen = p;
        size_t n = strcspn(p, " ");
        p += n + (p[n] == ' ');
        if (*chosen == '{') {
            size_t slot = 0;
            while (strncmp(slots[slot].name, chosen + 1, n - 2) || slots[slot].name[n - 2])
                slot++;
            chosen = word(slot, below(&w->dice, slots[slot].n));
            n = strlen(chosen);
        }
        if (*chosen != ',' && out > w->sentence)
            *out++ = ' ';
        memcpy(out, chosen, n);
        out += n;
    }
    memcpy(out, ".", 2);
}

// ---- Sentences ---------------------------------------------------------------------------------

static bool new_fact(struct writer *w)
{
    struct dice *d = &w->dice;
    if (w->n_facts >= MOST_FACTS) {
        put_filler(w);
        return true;
    }
    if (!grow(&w->facts, w->n_facts, &w->room_facts, sizeof *w->facts))
        return false;
    struct fact *f = &w->facts[w->n_facts];
    do {
        if (w->n_facts && roll(d) < 0.5) {
            size_t field = below(d, KEY_WORDS);
            f->key = w->facts[below(d, w->n_facts)].key;
            f->key.word[field] = (uint32_t)below(d, slots[field].n);
        } else {
            for (size_t i = 0; i < KEY_WORDS; i++)
                f->key.word[i] = (uint32_t)below(d, slots[i].n);
        }
    } while (*taken(w, &f->key));
    *taken(w, &f->key) = 1;
    f->value[0] = (char)('1' + below(d, 9));
    for (size_t i = 1; i < VALUE_DIGITS; i++)
        f->value[i] = (char)('0' + below(d, 10));
    f->value[VALUE_DIGITS] = 0;
    w->n_facts++;
    put_fact(w, f);
    return true;
}

static bool new_link(struct writer *w)
{
    struct dice *d = &w->dice;
    if (!w->n_facts || 2 * w->n_links >= THINGS) {
        put_filler(w);
        return true;
    }
    if (!grow(&w->links, w->n_links, &w->room_links, sizeof *w->links))
        return false;
    struct link *l = &w->links[w->n_links++];
    l->fact = (uint32_t)below(d, w->n_facts);
    do {
        l->adjective = (uint32_t)below(d, slots[ADJECTIVE].n);
        l->noun = (uint32_t)below(d, slots[NOUN].n);
    } while (w->linked[thing_of(l->adjective, l->noun)]);
    w->linked[thing_of(l->adjective, l->noun)] = 1;
    const uint32_t *k = w->facts[l->fact].key.word;
    snprintf(w->sentence, SENTENCE, "the %s %s lay with the %s %s.", word(ADJECTIVE, l->adjective),
             word(NOUN, l->noun), word(ADJECTIVE, k[ADJECTIVE]), word(NOUN, k[NOUN]));
    w->sentence_tokens = 9;
    return true;
}

static bool new_vote(struct writer *w)
{
    struct voter *v = &w->voter[below(&w->dice, VOTERS)];
    bool second = roll(&w->dice) >= v->lean;
    v->count[second]++;
    snprintf(w->sentence, SENTENCE, "the %s %s waited at the %s.", word(ADJECTIVE, v->adjective),
             word(NOUN, v->noun), word(PLACE, v->place[second]));
    w->sentence_tokens = 8;
    return true;
}

static const char *passage_word(const struct passage *p, size_t i)
{
    uint32_t n = slots[ADJECTIVE].n, at = p->word[i];
    return at < n ? word(ADJECTIVE, at) : word(NOUN, at - n);
}

static void put_words(char *out, size_t size, const struct passage *p, size_t from, size_t to)
{
    for (size_t i = from, used = 0; i < to; i++)
        used += (size_t)snprintf(out + used, size - used, " %s", passage_word(p, i));
}

static bool new_passage(struct writer *w)
{
    uint32_t all[128];
    if (!grow(&w->passages, w->n_passages, &w->room_passages, sizeof *w->passages))
        return false;
    struct passage *p = &w->passages[w->n_passages++];
    for (uint32_t i = 0; i < 128; i++)
        all[i] = i;
    sample(&w->dice, all, 128, PASSAGE_WORDS);
    memcpy(p->word, all, sizeof p->word);
    char words[SENTENCE - 8];
    put_words(words, sizeof words, p, 0, PASSAGE_WORDS);
    snprintf(w->sentence, SENTENCE, "the%s.", words);
    w->sentence_tokens = PASSAGE_WORDS + 2;
    return true;
}

static bool next_sentence(struct writer *w)
{
    const struct mix *m = &mixes[w->task];
    if (w->task == EVAL_recall || w->task == EVAL_keys) { // a ledger begins with a fact
        if (roll(&w->dice) < m->facts || !w->n_facts)
            return new_fact(w);
        put_filler(w);
        return true;
    }
    const double share[] = {m->facts, m->links, m->votes, m->passages};
    bool (*const make[])(struct writer *) = {new_fact, new_link, new_vote, new_passage};
    double at = roll(&w->dice);
    for (size_t i = 0; i < sizeof share / sizeof *share; i++) {
        if (at < share[i])
            return make[i](w);
        at -= share[i];
    }
    put_filler(w);
    return true;
}

static bool append(struct writer *w, bool new_line)
{
    size_t n = strlen(w->sentence);
    while (w->bytes + n + 2 > w->room) {
        size_t room = w->room ? 2 * w->room : 4096;
        char *moved = realloc(w->text, room);
        if (!moved)
            return false;
        w->text = moved;
        w->room = room;
    }
    w->sentence[0] = (char)toupper((unsigned char)w->sentence[0]);
    if (w->bytes) {
        w->text[w->bytes++] = new_line ? '\n' : ' ';
        w->tokens += new_line;
    }
    memcpy(w->text + w->bytes, w->sentence, n + 1);
    w->bytes += n;
    w->tokens += w->sentence_tokens;
    return true;
}

static void new_voters(struct writer *w)
{
    uint32_t adjective[64], noun[64], place[32];
    for (uint32_t i = 0; i < 64; i++)
        adjective[i] = noun[i] = i;
    sample(&w->dice, adjective, slots[ADJECTIVE].n, VOTERS);
    sample(&w->dice, noun, slots[NOUN].n, VOTERS);
    for (size_t v = 0; v < VOTERS; v++) {
        for (uint32_t i = 0; i < slots[PLACE].n; i++)
            place[i] = i;
        sample(&w->dice, place, slots[PLACE].n, 2);
        w->voter[v] = (struct voter){.adjective = adjective[v],
                                     .noun = noun[v],
                                     .place = {place[0], place[1]},
                                     .lean = 0.6 + 0.15 * roll(&w->dice)};
    }
}

static bool write_document(struct writer *w, uint64_t least_tokens)
{
    size_t sentences_left = 0;
    if (w->task != EVAL_recall && w->task != EVAL_keys)
        new_voters(w);
    while (w->tokens < least_tokens) {
        bool new_line = !sentences_left;
        if (new_line)
            sentences_left = 4 + below(&w->dice, 5);
        sentences_left--;
        if (!next_sentence(w) || !append(w, new_line))
            return false;
    }
    return true;
}

// ---- Questions ---------------------------------------------------------------------------------

static bool part(struct eval_question *q, const char *prompt, const char *answer)
{
    struct eval_part *p = &q->part[q->n_parts++];
    p->prompt = strdup(prompt);
    p->answer = strdup(answer);
    return p->prompt && p->answer;
}

static bool ask_number(const struct writer *w, struct eval_question *q, const struct fact *f,
                       const struct link *link)
{
    char prompt[SENTENCE], answer[VALUE_DIGITS + 3];
    const uint32_t *k = f->key.word;
    snprintf(prompt, sizeof prompt, "\nQuestion: the %s %s the %s %s is",
             word(ATTRIBUTE, k[ATTRIBUTE]), link ? "with" : "of",
             word(ADJECTIVE, link ? link->adjective : k[ADJECTIVE]),
             word(NOUN, link ? link->noun : k[NOUN]));
    snprintf(answer, sizeof answer, " %s.", f->value);
    (void)w;
    return part(q, prompt, answer);
}

static bool is_clear(const struct voter *v)
{
    double first = (double)v->count[0], second = (double)v->count[1];
    return fabs(first - second) >= fmax(2, (first + second) / 10);
}

static bool ask_vote(const struct writer *w, struct eval_question *q, size_t number)
{
    char prompt[SENTENCE], answer[32];
    const struct voter *v = w->voter;
    for (;; v++)
        if (is_clear(v) && !number--)
            break;
    snprintf(prompt, sizeof prompt, "\nQuestion: the %s %s waited at the",
             word(ADJECTIVE, v->adjective), word(NOUN, v->noun));
    snprintf(answer, sizeof answer, " %s", word(PLACE, v->place[v->count[1] > v->count[0]]));
    return part(q, prompt, answer);
}

static bool ask_copy(struct eval_question *q, const struct passage *p)
{
    char prompt[SENTENCE], cue[SENTENCE / 2], answer[SENTENCE];
    put_words(cue, sizeof cue, p, 0, CUE_WORDS);
    snprintf(prompt, sizeof prompt, "\nQuestion: the%s", cue);
    put_words(answer, sizeof answer - 1, p, CUE_WORDS, PASSAGE_WORDS);
    strcat(answer, ".");
    return part(q, prompt, answer);
}

static size_t askable(const struct writer *w)
{
    size_t clear = 0;
    switch (w->task) {
    case EVAL_hop:
        return w->n_links;
    case EVAL_copy:
        return w->n_passages;
    case EVAL_vote:
        for (size_t i = 0; i < VOTERS; i++)
            clear += is_clear(&w->voter[i]);
        return clear;
    default:
        return w->n_facts;
    }
}

static bool ask(struct writer *w, struct eval_question *q, size_t at)
{
    switch (w->task) {
    case EVAL_hop:
        return ask_number(w, q, &w->facts[w->links[at].fact], &w->links[at]);
    case EVAL_copy:
        return ask_copy(q, &w->passages[at]);
    case EVAL_vote:
        return ask_vote(w, q, at);
    default:
        return ask_number(w, q, &w->facts[at], NULL);
    }
}

// Spread evenly over what can be asked. Of a ledger everything is asked for as often as wanted.
static bool ask_all(struct writer *w, struct eval_document *d, size_t questions)
{
    size_t all = askable(w), parts = w->task == EVAL_keys ? EVAL_KEYS : 1;
    size_t n = w->task == EVAL_recall || w->task == EVAL_keys ? questions * parts
               : questions < all                              ? questions
                                                              : all;
    d->questions = calloc(n / parts + 1, sizeof *d->questions);
    if (!d->questions)
        return false;
    d->n_questions = n / parts;
    for (size_t i = 0; i < n; i++) {
        // Of task keys, the parts of a question lie far apart.
        struct eval_question *q = &d->questions[i % d->n_questions];
        double at = ((double)i + roll(&w->dice)) / (double)n * (double)all;
        if (!ask(w, q, (size_t)at))
            return false;
    }
    return true;
}

bool eval_document_make(struct eval_document *out, enum eval_task task, uint64_t least_tokens,
                        uint32_t seed, size_t questions)
{
    struct writer *w = calloc(1, sizeof *w);
    *out = (struct eval_document){0};
    if (!w)
        return false;
    w->task = task;
    dice_seed(&w->dice, seed);
    bool ok = write_document(w, least_tokens);
    out->text = w->text;
    out->bytes = w->bytes;
    out->tokens = w->tokens;
    ok = ok && ask_all(w, out, questions);
    free(w->facts);
    free(w->links);
    free(w->passages);
    free(w);
    if (!ok)
        eval_document_free(out);
    return ok;
}

void eval_document_free(struct eval_document *d)
{
    for (size_t i = 0; i < d->n_questions; i++)
        for (size_t p = 0; p < d->questions[i].n_parts; p++) {
            free(d->questions[i].part[p].prompt);
            free(d->questions[i].part[p].answer);
        }
    free(d->questions);
    free(d->text);
    *d = (struct eval_document){0};
}
