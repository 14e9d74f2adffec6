// SPDX-License-Identifier: Apache-2.0
// Every resource has at most one event to come, the end of what it is doing, so a heap of resources
// is the whole calendar. All events of one moment are taken before anything is begun at that
// moment: nothing depends on the order in which they are found.
#include "drive/flash/nand_time.h"
#include "base/checked.h"

#include <stdlib.h>

enum {
    CHANNELS_MAX = 64,
    DIES_MAX = 64,
    PLANES_MAX = 8,
    REGISTERS_MAX = 2,
    PRIORITIES = 3,
    CLASS_PROGRAM = PRIORITIES,
    CLASS_ERASE,
    CLASS_NONE,
    NOWHERE = -1,
};
#define SECOND_NS UINT64_C(1000000000)

struct queue {
    struct nand_op *head, *tail;
};

// A page in a register: being read, or waiting for its transfer.
struct page {
    struct nand_op *op; // NULL: free
    uint32_t times;     // 1 and the retries
    struct page *next;
};

struct unit {
    struct queue reads[PRIORITIES], writes;
    struct nand_op *all_reads, *all_writes; // outstanding, the newest first
    struct page pages[REGISTERS_MAX];
    unsigned used;       // of them
    struct page *active; // being read in the die
    struct nand_op *loaded, *written;
};

enum die_state { DIE_IDLE, DIE_READ, DIE_PROGRAM, DIE_ERASE, DIE_SUSPENDED };

struct die {
    enum die_state state, suspended; // suspended: what is, or DIE_IDLE
    bool claimed;                    // a command is on its way that will make it busy
    bool loading, loaded;            // data for a program: on the way, there
    uint64_t start_ns, end_ns;       // of what it is doing
    uint64_t rest_ns;                // of what is suspended
    uint64_t suspends;               // of what it programs or erases
    uint64_t queued;                 // operations that wait to be begun
};

enum job_kind { JOB_NONE, JOB_OUT, JOB_READ, JOB_LOAD, JOB_ERASE };

struct channel {
    struct page *out[PRIORITIES], **out_end[PRIORITIES];
    enum job_kind job;
    uint32_t die;      // of the job
    struct page *page; // JOB_OUT
    uint32_t turn;     // the die that is looked at first
    bool dirty;        // something may begin
};

struct nand_time {
    struct nand_params p;
    struct nand_time_options o;
    uint32_t dies;             // of all channels; die d lies on channel d % channels
    uint32_t *heap, heap_n;    // of resources: dies, channels, the port, the end of a hold
    uint64_t *when;            // [resource], the event to come
    int32_t *place;            // [resource], in the heap
    struct unit *units;        // [units]
    struct die *die;           // [dies]
    struct channel *channel;   // [channels]
    uint32_t *dirty, dirty_n;  // channels
    uint64_t page_ns, port_ns; // transfer of a page
    uint64_t out_ns;           // of one that is read: the filter may be slower
    uint64_t port_free_ns;
    uint64_t held_ns;     // channels begin nothing before
    struct queue passing; // whose last page passes the port
    struct queue done;
    uint64_t now_ns, order, outstanding, busy_since_ns;
    struct nand_counters counters;
};

// ---- parameters --------------------------------------------------------------------------------

static int check_range(const char *name, uint64_t value, uint64_t least, uint64_t most,
                       struct inst_msg *msg)
{
    if (value >= least && value <= most)
        return 0;
    return inst_fail(msg, INST_EINVAL, "NAND: %s: %llu is not in %llu to %llu", name,
                     (unsigned long long)value, (unsigned long long)least,
                     (unsigned long long)most);
}

int nand_params_check(const struct nand_params *p, struct inst_msg *msg)
{
    const struct {
        const char *name;
        uint64_t value, least, most;
    } ranges[] = {
        {"channels", p->channels, 1, CHANNELS_MAX},
        {"dies", p->dies, 1, DIES_MAX},
        {"planes", p->planes, 1, PLANES_MAX},
        {"page", p->page_bytes, 512, 1 << 20},
        {"spare", p->spare_bytes, 0, p->page_bytes},
        {"pages_per_block", p->pages_per_block, 2, UINT16_MAX},
        {"read", p->read_ns, 1, SECOND_NS},
        {"program", p->program_ns, 1, SECOND_NS},
        {"erase", p->erase_ns, 1, SECOND_NS},
        {"command", p->command_ns, 0, 1000000},
        // No page takes longer than a second, none less than a nanosecond.
        {"bus", p->bus, 1 << 20, UINT64_C(1000000000000)},
        {"filter", p->filter ? p->filter : 1 << 20, 1 << 20, UINT64_C(1000000000000)},
        {"port", p->port ? p->port : 1 << 20, 1 << 20, UINT64_C(1000000000000)},
        {"registers", p->registers, 1, REGISTERS_MAX},
        {"suspends", p->suspends, 0, 1000},
        {"suspend", p->suspend_ns, 0, SECOND_NS},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        int err =
            check_range(ranges[i].name, ranges[i].value, ranges[i].least, ranges[i].most, msg);
        if (err)
            return err;
    }
    if (!is_power_of_two(p->page_bytes))
        return inst_fail(msg, INST_EINVAL, "NAND: page: %llu is not a power of two",
                         (unsigned long long)p->page_bytes);
    if (p->page_bytes * p->pages_per_block > 1 << 30)
        return inst_fail(msg, INST_EINVAL, "NAND: a block of %llu pages of %llu is beyond 1 GiB",
                         (unsigned long long)p->pages_per_block, (unsigned long long)p->page_bytes);
    if (p->suspends && p->suspend_ns >= p->program_ns)
        return inst_fail(msg, INST_EINVAL,
                         "NAND: suspend: %llu ns are not less than a program: nothing would ever "
                         "be suspended",
                         (unsigned long long)p->suspend_ns);
    if (!p->suspends && p->suspend_ns)
        return inst_fail(msg, INST_EINVAL, "NAND: suspend needs suspends");
    return 0;
}

// ---- the calendar ------------------------------------------------------------------------------

// A die that ends at the moment in which a command reaches it has ended.
static uint32_t channel_resource(const struct nand_time *t, uint32_t channel)
{
    return t->dies + channel;
}

static uint32_t port_resource(const struct nand_time *t)
{
    return (uint32_t)t->p.channels + t->dies;
}

static uint32_t hold_resource(const struct nand_time *t)
{
    return port_resource(t) + 1;
}

static bool is_before(const struct nand_time *t, uint32_t a, uint32_t b)
{
    return t->when[a] < t->when[b] || (t->when[a] == t->when[b] && a < b);
}

static void heap_put(struct nand_time *t, uint32_t at, uint32_t resource)
{
    t->heap[at] = resource;
    t->place[resource] = (int32_t)at;
}

static void heap_up(struct nand_time *t, uint32_t at)
{
    uint32_t resource = t->heap[at];
    for (; at && is_before(t, resource, t->heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap_put(t, at, t->heap[(at - 1) / 2]);
    heap_put(t, at, resource);
}

static void heap_down(struct nand_time *t, uint32_t at)
{
    uint32_t resource = t->heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= t->heap_n)
            break;
        if (child + 1 < t->heap_n && is_before(t, t->heap[child + 1], t->heap[child]))
            child++;
        if (!is_before(t, t->heap[child], resource))
            break;
        heap_put(t, at, t->heap[child]);
        at = child;
    }
    heap_put(t, at, resource);
}

static void event_cancel(struct nand_time *t, uint32_t resource)
{
    int32_t at = t->place[resource];
    if (at == NOWHERE)
        return;
    t->place[resource] = NOWHERE;
    uint32_t last = t->heap[--t->heap_n];
    if (last == resource)
        return;
    heap_put(t, (uint32_t)at, last);
    heap_down(t, (uint32_t)at);
    heap_up(t, (uint32_t)t->place[last]);
}

static void event_set(struct nand_time *t, uint32_t resource, uint64_t when)
{
    event_cancel(t, resource);
    t->when[resource] = when;
    heap_put(t, t->heap_n, resource);
    heap_up(t, t->heap_n++);
}

// ---- small things ------------------------------------------------------------------------------

static void push(struct queue *q, struct nand_op *op)
{
    op->next = NULL;
    if (q->head)
        q->tail->next = op;
    else
        q->head = op;
    q->tail = op;
}

static struct nand_op *pop(struct queue *q)
{
    struct nand_op *op = q->head;
    q->head = op->next;
    op->next = NULL;
    return op;
}

static struct unit *unit_of(const struct nand_time *t, uint32_t die, uint32_t plane)
{
    return &t->units[die + plane * t->dies];
}

static uint32_t die_of(const struct nand_time *t, uint32_t unit)
{
    return unit % t->dies;
}

static uint32_t channel_of(const struct nand_time *t, uint32_t die)
{
    return die % (uint32_t)t->p.channels;
}

static void mark(struct nand_time *t, uint32_t channel)
{
    if (t->channel[channel].dirty)
        return;
    t->channel[channel].dirty = true;
    t->dirty[t->dirty_n++] = channel;
}

static void watch(struct nand_time *t, enum nand_resource resource, uint32_t index, uint64_t start,
                  uint64_t end)
{
    if (resource == NAND_CHANNEL)
        t->counters.channel_ns += end - start;
    else if (resource == NAND_DIE)
        t->counters.die_ns += end - start;
    if (t->o.watch && end > start)
        t->o.watch(t->o.user, resource, index, start, end);
}

static void enqueue(struct nand_time *t, struct queue *q, struct nand_op *op)
{
    push(q, op);
    t->die[die_of(t, op->unit)].queued++;
}

static struct nand_op **all_of(struct nand_time *t, const struct nand_op *op)
{
    struct unit *unit = &t->units[op->unit];
    return op->kind == NAND_READ ? &unit->all_reads : &unit->all_writes;
}

// An operation is over; reads that waited for it can be done.
static void finish(struct nand_time *t, struct nand_op *op, uint64_t now)
{
    struct nand_op **all = all_of(t, op);
    if (op->behind)
        op->behind->before = op->before;
    else
        *all = op->before;
    if (op->before)
        op->before->behind = op->behind;
    for (struct nand_op *read = op->held, *next; read; read = next) {
        next = read->next;
        enqueue(t, &t->units[read->unit].reads[read->priority], read);
    }
    op->held = op->held_tail = NULL;
    mark(t, channel_of(t, die_of(t, op->unit)));
    op->done_ns = now;
    push(&t->done, op);
    if (!--t->outstanding)
        t->counters.busy_ns += now - t->busy_since_ns;
}

// ---- what can begin ----------------------------------------------------------------------------

static bool has_earlier_read(const struct unit *unit, const struct nand_op *op)
{
    for (const struct nand_op *read = unit->all_reads; read; read = read->before)
        if (read->block == op->block && read->order < op->order)
            return true;
    return false;
}

static struct nand_op *writable(const struct unit *unit, enum nand_kind kind)
{
    struct nand_op *op = unit->writes.head;
    if (!op || op->kind != kind)
        return NULL;
    return kind == NAND_ERASE && has_earlier_read(unit, op) ? NULL : op;
}

static struct nand_op *candidate(const struct nand_time *t, uint32_t die, uint32_t plane,
                                 unsigned class)
{
    const struct unit *unit = unit_of(t, die, plane);
    if (class < PRIORITIES)
        return unit->used < t->p.registers ? unit->reads[class].head : NULL;
    return writable(unit, class == CLASS_PROGRAM ? NAND_PROGRAM : NAND_ERASE);
}

static bool can_suspend(const struct nand_time *t, const struct die *d)
{
    return (d->state == DIE_PROGRAM || d->state == DIE_ERASE) && d->suspends < t->p.suspends &&
           d->end_ns - t->now_ns > t->p.suspend_ns;
}

// Classes below this may begin in a die as it is.
static unsigned class_limit(const struct nand_time *t, const struct die *d)
{
    if (d->claimed)
        return 0;
    if (d->state == DIE_SUSPENDED)
        return FLASH_DEMAND + 1;
    if (d->state == DIE_IDLE)
        return d->loaded ? (unsigned)CLASS_PROGRAM : (unsigned)CLASS_NONE;
    return can_suspend(t, d) ? FLASH_DEMAND + 1 : 0;
}

// Data for the next program may come while the die is busy, where there is a register for it.
static bool may_load(const struct nand_time *t, const struct die *d)
{
    return !d->loading && !d->loaded && !d->claimed && (d->state == DIE_IDLE || t->p.registers > 1);
}

// The best class of what could begin now, with the oldest operation of it.
static unsigned best_class(const struct nand_time *t, uint32_t die, struct nand_op **oldest)
{
    const struct die *d = &t->die[die];
    unsigned limit = class_limit(t, d);
    bool load = may_load(t, d);
    *oldest = NULL;
    if (!d->queued)
        return CLASS_NONE;
    for (unsigned class = 0; class < CLASS_NONE; class ++) {
        if (class == CLASS_PROGRAM ? !load : class >= limit)
            continue;
        // An erase would have to wait for what is being loaded.
        if (class == CLASS_ERASE && d->loading)
            continue;
        for (uint32_t plane = 0; plane < t->p.planes; plane++) {
            struct nand_op *op = candidate(t, die, plane, class);
            if (op && (!*oldest || op->order < (*oldest)->order))
                *oldest = op;
        }
        if (*oldest)
            return class;
    }
    return CLASS_NONE;
}

// ---- beginning ---------------------------------------------------------------------------------

static void begin_job(struct nand_time *t, uint32_t channel, enum job_kind job, uint64_t ns)
{
    t->channel[channel].job = job;
    watch(t, NAND_CHANNEL, channel, t->now_ns, t->now_ns + ns);
    event_set(t, channel_resource(t, channel), t->now_ns + ns);
}

static void issue_read(struct nand_time *t, struct unit *unit, struct nand_op *op)
{
    uint32_t number = op->page + op->issued++;
    uint32_t retries = t->o.retries ? t->o.retries(t->o.user, op, number) : 0;
    struct page *page = unit->pages;
    while (page->op)
        page++;
    *page = (struct page){.op = op, .times = 1 + retries};
    unit->used++;
    unit->active = page;
    t->counters.read_pages++;
    t->counters.retries += retries;
    if (op->issued == op->pages) {
        pop(&unit->reads[op->priority]);
        t->die[die_of(t, op->unit)].queued--;
    }
}

static void issue_write(struct nand_time *t, struct unit *unit, struct nand_op *op)
{
    if (op->kind == NAND_PROGRAM) {
        t->counters.program_pages++;
        t->counters.program_bytes += t->p.page_bytes + t->p.spare_bytes;
        unit->loaded = op;
    } else {
        t->counters.erases++;
        unit->written = op;
    }
    if (op->kind == NAND_ERASE || ++op->issued == op->pages) {
        pop(&unit->writes);
        t->die[die_of(t, op->unit)].queued--;
    }
}

// The die takes the channel for what its oldest operation of a class needs, and what can join.
static void grant(struct nand_time *t, uint32_t die, unsigned class, const struct nand_op *oldest)
{
    struct die *d = &t->die[die];
    uint32_t page = oldest->page + oldest->issued;
    uint64_t n = 0;
    for (uint32_t plane = 0; plane < t->p.planes; plane++) {
        struct nand_op *op = candidate(t, die, plane, class);
        if (!op || (class != CLASS_ERASE && op->page + op->issued != page))
            continue;
        n++;
        if (class < PRIORITIES)
            issue_read(t, unit_of(t, die, plane), op);
        else
            issue_write(t, unit_of(t, die, plane), op);
    }
    t->counters.joined_pages += n - 1;
    uint32_t channel = channel_of(t, die);
    t->channel[channel].die = die;
    t->channel[channel].turn = die / (uint32_t)t->p.channels + 1;
    if (class == CLASS_PROGRAM) {
        d->loading = true;
        begin_job(t, channel, JOB_LOAD, n * (t->p.command_ns + t->page_ns));
    } else {
        d->claimed = true;
        begin_job(t, channel, class == CLASS_ERASE ? JOB_ERASE : JOB_READ, n * t->p.command_ns);
    }
}

static void begin_out(struct nand_time *t, uint32_t channel, unsigned priority)
{
    struct channel *c = &t->channel[channel];
    struct page *page = c->out[priority];
    c->out[priority] = page->next;
    if (!page->next)
        c->out_end[priority] = &c->out[priority];
    c->page = page;
    t->counters.read_bytes += page->times * (t->p.page_bytes + t->p.spare_bytes);
    begin_job(t, channel, JOB_OUT, page->times * t->out_ns);
}

static void begin_array(struct nand_time *t, uint32_t die, enum die_state state, uint64_t ns)
{
    struct die *d = &t->die[die];
    d->state = state;
    d->start_ns = t->now_ns;
    d->end_ns = t->now_ns + ns;
    event_set(t, die, d->end_ns);
}

// What was loaded is programmed as soon as no read comes first.
static void begin_program(struct nand_time *t, uint32_t die)
{
    struct die *d = &t->die[die];
    struct nand_op *op;
    if (d->state != DIE_IDLE || d->claimed || !d->loaded || best_class(t, die, &op) < PRIORITIES)
        return;
    for (uint32_t plane = 0; plane < t->p.planes; plane++) {
        struct unit *unit = unit_of(t, die, plane);
        unit->written = unit->loaded;
        unit->loaded = NULL;
    }
    d->loaded = false;
    d->suspends = 0;
    begin_array(t, die, DIE_PROGRAM, t->p.program_ns);
}

// Everything on one channel that can begin now.
static void begin_all(struct nand_time *t, uint32_t channel)
{
    struct channel *c = &t->channel[channel];
    uint32_t channels = (uint32_t)t->p.channels, dies = (uint32_t)t->p.dies;
    for (uint32_t i = 0; i < dies; i++)
        begin_program(t, channel + i * channels);
    if (c->job != JOB_NONE || t->held_ns > t->now_ns)
        return;
    unsigned best = CLASS_NONE;
    uint32_t chosen = 0;
    struct nand_op *oldest = NULL;
    for (uint32_t i = 0; i < dies && best; i++) {
        uint32_t die = channel + (c->turn + i) % dies * channels;
        struct nand_op *op;
        unsigned class = best_class(t, die, &op);
        if (class < best) {
            best = class;
            chosen = die;
            oldest = op;
        }
    }
    // Commands for reads are short and keep dies busy; programs take as long as pages do.
    for (unsigned i = 0; i < PRIORITIES && best >= PRIORITIES; i++) {
        if (c->out[i]) {
            begin_out(t, channel, i);
            return;
        }
    }
    if (best < CLASS_NONE)
        grant(t, chosen, best, oldest);
}

static void begin_dirty(struct nand_time *t)
{
    while (t->dirty_n) {
        uint32_t channel = t->dirty[--t->dirty_n];
        t->channel[channel].dirty = false;
        begin_all(t, channel);
    }
}

// ---- ends --------------------------------------------------------------------------------------

static void pass_port(struct nand_time *t, struct nand_op *op)
{
    uint64_t start = max_u64(t->now_ns, t->port_free_ns);
    t->port_free_ns = start + t->port_ns;
    watch(t, NAND_PORT, 0, start, t->port_free_ns);
    if (op->left)
        return;
    op->done_ns = t->port_free_ns;
    push(&t->passing, op);
    if (t->passing.head == op)
        event_set(t, port_resource(t), op->done_ns);
}

static void end_out(struct nand_time *t, struct channel *c)
{
    struct page *page = c->page;
    struct nand_op *op = page->op;
    page->op = NULL;
    t->units[op->unit].used--;
    op->left--;
    if (t->p.port)
        pass_port(t, op);
    else if (!op->left)
        finish(t, op, t->now_ns);
}

static void begin_read(struct nand_time *t, uint32_t die)
{
    struct die *d = &t->die[die];
    uint32_t times = 1;
    uint64_t before = 0;
    for (uint32_t plane = 0; plane < t->p.planes; plane++) {
        const struct page *page = unit_of(t, die, plane)->active;
        times = page && page->times > times ? page->times : times;
    }
    if (d->state == DIE_PROGRAM || d->state == DIE_ERASE) {
        watch(t, NAND_DIE, die, d->start_ns, t->now_ns);
        d->rest_ns = d->end_ns - t->now_ns;
        d->suspended = d->state;
        d->suspends++;
        t->counters.suspends++;
        before = t->p.suspend_ns;
    }
    begin_array(t, die, DIE_READ, before + times * t->p.read_ns);
}

static void end_channel(struct nand_time *t, uint32_t channel)
{
    struct channel *c = &t->channel[channel];
    struct die *d = &t->die[c->die];
    enum job_kind job = c->job;
    c->job = JOB_NONE;
    mark(t, channel);
    switch (job) {
    case JOB_OUT:
        end_out(t, c);
        break;
    case JOB_READ:
        d->claimed = false;
        begin_read(t, c->die);
        break;
    case JOB_LOAD:
        d->loading = false;
        d->loaded = true;
        break;
    case JOB_ERASE:
        d->claimed = false;
        d->suspends = 0;
        begin_array(t, c->die, DIE_ERASE, t->p.erase_ns);
        break;
    case JOB_NONE:
        break;
    }
}

static void end_read(struct nand_time *t, uint32_t die)
{
    struct channel *c = &t->channel[channel_of(t, die)];
    for (uint32_t plane = 0; plane < t->p.planes; plane++) {
        struct unit *unit = unit_of(t, die, plane);
        struct page *page = unit->active;
        if (!page)
            continue;
        unit->active = NULL;
        *c->out_end[page->op->priority] = page;
        c->out_end[page->op->priority] = &page->next;
    }
}

static void end_write(struct nand_time *t, uint32_t die)
{
    for (uint32_t plane = 0; plane < t->p.planes; plane++) {
        struct unit *unit = unit_of(t, die, plane);
        struct nand_op *op = unit->written;
        unit->written = NULL;
        if (op && (op->kind == NAND_ERASE || !--op->left))
            finish(t, op, t->now_ns);
    }
}

static void end_die(struct nand_time *t, uint32_t die)
{
    struct die *d = &t->die[die];
    watch(t, NAND_DIE, die, d->start_ns, t->now_ns);
    mark(t, channel_of(t, die));
    if (d->state != DIE_READ) {
        d->state = DIE_IDLE;
        end_write(t, die);
        return;
    }
    end_read(t, die);
    d->state = d->suspended ? DIE_SUSPENDED : DIE_IDLE;
}

// What was suspended goes on, once all that ends at this moment has ended.
static void resume(struct nand_time *t, uint32_t die)
{
    struct die *d = &t->die[die];
    struct nand_op *op;
    if (d->state != DIE_SUSPENDED || d->claimed || best_class(t, die, &op) == FLASH_DEMAND)
        return;
    enum die_state state = d->suspended;
    d->suspended = DIE_IDLE;
    begin_array(t, die, state, d->rest_ns);
}

static void end_port(struct nand_time *t)
{
    finish(t, pop(&t->passing), t->now_ns);
    if (t->passing.head)
        event_set(t, port_resource(t), t->passing.head->done_ns);
}

static void end_hold(struct nand_time *t)
{
    for (uint32_t c = 0; c < (uint32_t)t->p.channels; c++)
        mark(t, c);
}

// ---- the table ---------------------------------------------------------------------------------

// All that ends at one moment, then all that begins there.
static void take_moment(struct nand_time *t)
{
    uint32_t channels = (uint32_t)t->p.channels;
    t->now_ns = t->when[t->heap[0]];
    do {
        uint32_t resource = t->heap[0];
        event_cancel(t, resource);
        if (resource < t->dies)
            end_die(t, resource);
        else if (resource < port_resource(t))
            end_channel(t, resource - t->dies);
        else if (resource == port_resource(t))
            end_port(t);
        else
            end_hold(t);
    } while (t->heap_n && t->when[t->heap[0]] == t->now_ns);
    for (uint32_t i = 0; i < t->dirty_n; i++)
        for (uint32_t die = t->dirty[i]; die < t->dies; die += channels)
            resume(t, die);
    begin_dirty(t);
}

static void go_on(struct nand_time *t, uint64_t now)
{
    while (t->heap_n && t->when[t->heap[0]] <= now)
        take_moment(t);
    t->now_ns = max_u64(t->now_ns, now);
}

static struct nand_op *last_write(const struct unit *unit, uint64_t block)
{
    struct nand_op *op = unit->all_writes; // the newest first
    while (op && op->block != block)
        op = op->before;
    return op;
}

static void accept(struct nand_time *t, struct nand_op *op)
{
    struct unit *unit = &t->units[op->unit];
    struct nand_op **all = all_of(t, op);
    op->order = t->order++;
    op->issued = 0;
    op->left = op->pages;
    op->held = op->held_tail = NULL;
    op->behind = NULL;
    op->before = *all;
    if (*all)
        (*all)->behind = op;
    *all = op;
    if (!t->outstanding++)
        t->busy_since_ns = t->now_ns;
    struct nand_op *write = op->kind == NAND_READ ? last_write(unit, op->block) : NULL;
    op->next = NULL;
    if (!write) {
        enqueue(t, op->kind == NAND_READ ? &unit->reads[op->priority] : &unit->writes, op);
    } else {
        if (write->held)
            write->held_tail->next = op;
        else
            write->held = op;
        write->held_tail = op;
    }
    mark(t, channel_of(t, die_of(t, op->unit)));
}

void nand_time_submit(struct nand_time *t, struct nand_op *list, uint64_t now_ns)
{
    go_on(t, now_ns);
    for (struct nand_op *next; list; list = next) {
        next = list->next;
        accept(t, list);
    }
    begin_dirty(t);
}

struct nand_op *nand_time_advance(struct nand_time *t, uint64_t now_ns)
{
    go_on(t, now_ns);
    struct nand_op *list = t->done.head;
    t->done.head = NULL;
    return list;
}

uint64_t nand_time_next(const struct nand_time *t)
{
    if (t->done.head)
        return 0;
    return t->outstanding ? t->when[t->heap[0]] : UINT64_MAX;
}

void nand_time_hold(struct nand_time *t, uint64_t until_ns)
{
    if (until_ns <= t->held_ns || until_ns <= t->now_ns)
        return;
    t->held_ns = until_ns;
    event_set(t, hold_resource(t), until_ns);
}

void nand_time_counters(const struct nand_time *t, struct nand_counters *out)
{
    *out = t->counters;
    if (t->outstanding)
        out->busy_ns += t->now_ns - t->busy_since_ns;
}

int nand_time_open(struct nand_time **out, const struct nand_time_options *options,
                   struct inst_msg *msg)
{
    const struct nand_params *p = &options->params;
    int err = nand_params_check(p, msg);
    if (err)
        return err;
    uint32_t channels = (uint32_t)p->channels, dies = (uint32_t)(p->channels * p->dies);
    size_t resources = channels + dies + 2;
    size_t bytes = sizeof(struct nand_time) + nand_units(p) * sizeof(struct unit) +
                   dies * sizeof(struct die) + channels * sizeof(struct channel) +
                   resources * sizeof(uint64_t) + resources * 2 * sizeof(uint32_t) +
                   channels * sizeof(uint32_t);
    struct nand_time *t = calloc(1, bytes);
    if (!t)
        return inst_fail(msg, INST_ENOMEM, "no memory for the model of NAND");
    t->p = *p;
    t->o = *options;
    t->dies = dies;
    t->page_ns = div_round_up((p->page_bytes + p->spare_bytes) * SECOND_NS, p->bus);
    t->out_ns = t->page_ns;
    if (p->filter)
        t->out_ns = max_u64(t->out_ns, div_round_up(p->page_bytes * SECOND_NS, p->filter));
    t->port_ns = p->port ? div_round_up(p->page_bytes * SECOND_NS, p->port) : 0;
    t->units = (struct unit *)(t + 1);
    t->die = (struct die *)(t->units + nand_units(p));
    t->channel = (struct channel *)(t->die + dies);
    t->when = (uint64_t *)(t->channel + channels);
    t->place = (int32_t *)(t->when + resources);
    t->heap = (uint32_t *)(t->place + resources);
    t->dirty = t->heap + resources;
    for (size_t i = 0; i < resources; i++)
        t->place[i] = NOWHERE;
    for (uint32_t c = 0; c < channels; c++)
        for (unsigned i = 0; i < PRIORITIES; i++)
            t->channel[c].out_end[i] = &t->channel[c].out[i];
    *out = t;
    return 0;
}

void nand_time_close(struct nand_time *t)
{
    free(t);
}
