// SPDX-License-Identifier: Apache-2.0
// The command set: the one header that the drive shares with its hosts. NVMe-shaped: 64-byte
// entries, 16-byte completions, opcodes in the vendor range whose low two bits tell the direction
// of the data (01 host to drive, 10 drive to host, 00 none). The entry holds only what every
// command has; what varies lies in the payload as a versioned little-endian table.
//
// A command has up to two regions. The table says what the command is about and lies in the host's
// memory: struct space_config for CONFIG; for WRITE, READ, ATTEND, FORK and RECLAIM a 64-byte
// header (struct table_header), then `count` 64-byte items. The data, `length` bytes, is K, V, q or
// a result and lies wherever the link or a compute device placed it. Nothing puts the two together
// but a transport that has to: on such a wire the table comes first, and its size follows from the
// entry (command_table_bytes). Reserved bytes are zero.
//
// A slab is the order of K and V on the wire: for every head of the range, K of n tokens
// [n][head_dim], then V [n][head_dim], all fp16; padded to a multiple of 64 bytes.
#ifndef INST_DRIVE_COMMAND_H
#define INST_DRIVE_COMMAND_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    COMMAND_BYTES = 64,
    COMPLETION_BYTES = 16,
    TABLE_VERSION = 1,
    TABLE_HEADER_BYTES = 64,
    TABLE_ITEM_BYTES = 64,
    CONFIG_BYTES = 64,
    COMPLETION_TEXT_BYTES = 160,
};

enum opcode {
    OP_IDENTIFY = 0xc2, // out: IDENTIFY_MAP as a counter table
    OP_STAT = 0xc6,     // out: STAT_MAP as a counter table
    OP_CONFIG = 0xc9,   // table: struct space_config; result = token group chosen
    OP_WRITE = 0xcd,    // items {seq, epoch, pos, n_tokens}, data: each item's slab
    OP_READ = 0xd1,     // the same items; COLLECT returns each item's slab
    OP_ATTEND = 0xd5,   // items {seq, epoch, pos, n_tokens}, data: see attend_layout
    OP_COLLECT = 0xda,  // out: what the ticket's READ or ATTEND produced
    OP_FORK = 0xdd,     // items {seq = new, epoch, pos, parent, parent_epoch}
    OP_RECLAIM = 0xe1,  // items {seq, epoch, pos, n_tokens, layer_first, layer_count, seq_count}
    OP_FLUSH = 0xe4,    // full rows are on stable flash, summaries and erases done
    OP_SEAL = 0xe5,     // NOT_SUPPORTED
    OP_OPEN = 0xe9,     // NOT_SUPPORTED; host to drive, as SEAL: both bring a name
    OP_REMOVE = 0xf0,   // the space ends, with all sequences and READs that nobody has collected
    OP_ABORT = 0xec,    // gives a ticket up, whatever has become of it; result = there was one
};

// The 64-byte entry, decoded. Layout: byte 0 opcode, 2-3 cid, 40-43 space, 44-47 layer, 48-51
// count, 52-55 ticket, 56-59 length, 60-63 timeout_ms; the rest is zero (a transport fills in its
// own data pointers).
struct command {
    uint8_t opcode;
    uint16_t cid;   // chosen by the host, comes back in the completion
    uint32_t space; // created by CONFIG, number chosen by the host
    uint32_t layer; // WRITE, READ, ATTEND
    uint32_t count; // items of the table
    // READ, ATTEND, COLLECT, ABORT: chosen by the host, free again after COLLECT or ABORT. One that
    // is not collected for the drive's ticket_ms may be given up.
    uint32_t ticket;
    uint32_t length; // bytes of the data
    // COLLECT: how long to wait for the ticket's result. 0: for ticket_ms until there is such a
    // ticket, then for as long as it takes.
    uint32_t timeout_ms;
};

struct completion {
    uint64_t result;
    uint32_t owner; // who submitted the command
    uint16_t cid;
    int status; // 0 or INST_E*
    // What went wrong with this command and no other, "" when nothing did. COLLECT of an ATTEND
    // succeeds although items failed: then of the first of these.
    char text[COMPLETION_TEXT_BYTES];
};

void command_encode(uint8_t entry[COMMAND_BYTES], const struct command *command);
void command_decode(struct command *command, const uint8_t entry[COMMAND_BYTES]);
// Owner and text do not travel in the 16 bytes: a transport knows the one and sends the other
// apart.
void completion_encode(uint8_t entry[COMPLETION_BYTES], const struct completion *completion);
void completion_decode(struct completion *completion, const uint8_t entry[COMPLETION_BYTES]);

// How ATTEND finds what it reads. METHOD_SPARF and METHOD_PAGES need a space of that method;
// METHOD_DENSE works on every space.
enum attend_method { METHOD_DENSE = 0, METHOD_SPARF = 1, METHOD_PAGES = 2 };

// CONFIG: what a space holds. Shapes are of this drive's share of the heads.
struct space_config {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t group_tokens;  // power of two, 16 to 1024; 0: the drive chooses
    uint32_t max_sequences; // for planning the drive's DRAM; more get NO_RESOURCE when it is full
    uint64_t max_tokens;    // per sequence, for planning
    uint32_t q_heads;       // of an ATTEND, for planning; 0: 8 per KV head
    // enum attend_method: what the space must be able to serve besides dense attention.
    // METHOD_SPARF adds the channel-indexed copy of K, METHOD_PAGES a ranking index.
    uint32_t method;
    // METHOD_SPARF: channels of K that share a page, power of two, 1 to 16; a page then covers
    // page_bytes / (2 * page_channels) tokens. 0: the drive chooses.
    uint32_t page_channels;
    // METHOD_PAGES: consecutive tokens that are chosen together, power of two, 16 to 64, no more
    // than group_tokens. 0: the drive chooses.
    uint32_t piece_tokens;
    // enum kv_type (kernels/kv.h): how K and V are stored, which commands carry as fp16 whatever it
    // is. What kv_round has made comes back as it was; other numbers are rounded so.
    uint32_t kv_type;
    // METHOD_PAGES: keys that stand for a piece in the index, no more than its tokens. 0: the drive
    // chooses.
    uint32_t piece_keys;
    // METHOD_PAGES: neighbouring KV heads that choose the same tokens, so that what is read lies
    // together; divides kv_heads. 0: 1.
    uint32_t piece_heads;
    // METHOD_PAGES: so many keys are weighed for each query head where a sequence has many times as
    // many: the likeliest by clusters of like keys; more where pages_ratio wants more. 0: all.
    uint32_t piece_look;
    // METHOD_PAGES: bits that the index keeps of each channel of these keys, 1 or 2. 0: 2, with
    // piece_look or piece_flash 1.
    uint32_t piece_bits;
    // METHOD_PAGES: 1: the index lies on flash, and DRAM holds what is not there yet. What reading
    // it costs counts in pages_ratio; no pages_rest, no piece_look. 0: all of it lies in DRAM.
    uint32_t piece_flash;
};
// KV heads that choose the same tokens, and therefore are on one drive.
static inline uint32_t space_config_together(const struct space_config *config)
{
    return config->method == METHOD_PAGES && config->piece_heads ? config->piece_heads : 1;
}
// INST_EINVAL: they do not divide the KV heads.
int space_config_check_together(const struct space_config *config, struct inst_msg *msg);
void space_config_encode(uint8_t out[CONFIG_BYTES], const struct space_config *config);
int space_config_decode(struct space_config *config, const void *in, size_t bytes);

struct table_header {
    // WRITE, READ: the range of KV heads that the slabs hold
    uint32_t head_first, head_count;
    // ATTEND
    uint32_t method;  // enum attend_method
    uint32_t q_heads; // multiple of the space's kv_heads; q head h uses KV head h / group
    float scale;      // multiplies q . k
    float softcap;    // not 0: scores become softcap * tanh(score / softcap)
    // ATTEND, METHOD_SPARF. S = tokens attended, the appended one included.
    uint32_t sparf_channels; // r; 0 = ceil(head_dim / 8)
    uint32_t sparf_tokens;   // k = min(S, max(this, sparf_local)); 0 = by the divisor
    uint32_t sparf_divisor;  // k = min(S, max(ceil(S / this), sparf_local)); 0 = 8
    uint32_t sparf_local;    // so many most recent tokens are chosen whatever their rank
    uint32_t audit;          // 1: attend densely too, so that the captured mass is exact; of
                             // METHOD_DENSE: this is an audit of another, not to be read ahead of
    // ATTEND, METHOD_PAGES: how much is read, of the bytes that dense attention would.
    float pages_ratio;    // at most this part; 0 = 1/8, with a pages_mass 1
    float pages_mass;     // not 0: only until this share of the softmax is predicted to be captured
    uint32_t pages_local; // so many most recent tokens are read whatever their rank; 0: 16
    uint32_t pages_rest;  // 1: what is not read is estimated; 0: it counts for nothing
};

struct table_item {
    uint32_t seq, epoch; // a sequence is named by both; a stale epoch is refused
    // WRITE: first token written. READ: first token read. RECLAIM: first token of the range.
    // ATTEND: tokens before the query that are attended (all of [0, pos)). FORK: the length of the
    // shared prefix.
    uint64_t pos;
    // WRITE, READ: how many tokens. RECLAIM: length of the range, UINT64_MAX = to the end.
    // ATTEND: 1 = append this token's k, v at pos and attend to it too, 0 = only attend.
    uint64_t n_tokens;
    uint32_t lifetime; // WRITE, ATTEND, FORK that create: handle shared by sequences that
                       // end together; 0 = the sequence's own
    uint32_t parent, parent_epoch;     // FORK
    uint32_t layer_first, layer_count; // RECLAIM; all layers and all tokens = the sequence ends
    // RECLAIM: not 0: of all sequences in [seq, seq + this), whatever their epochs, as far as they
    // exist; 0: of the one that seq and epoch name.
    uint32_t seq_count;
    uint64_t window; // ATTEND: the first token that is attended, 0 = all of them
};

size_t table_bytes(uint32_t count); // header and items
// Of the command's table, 0 when it has none.
size_t command_table_bytes(const struct command *command);
void table_put_header(void *table, const struct table_header *header);
void table_put_item(void *table, uint32_t index, const struct table_item *item);
// Fails with INST_EINVAL when bytes is too short for the items or the version is unknown.
int table_get_header(struct table_header *header, const void *table, size_t bytes, uint32_t count);
void table_get_item(struct table_item *item, const void *table, uint32_t index);

// Bytes of one slab; false when it overflows.
bool slab_bytes(uint64_t heads, uint64_t n_tokens, uint64_t head_dim, uint64_t *out);

// Where things lie in the data of an ATTEND and of its COLLECT (byte offsets, 64-aligned).
struct attend_layout {
    uint64_t q;        // in: fp32 [count][q_heads][head_dim]
    uint64_t k, v;     // in: fp16 [count][kv_heads][head_dim]; rows of non-appending items unused
    uint64_t in_bytes; // without k and v when no item appends
    uint64_t out;      // out: fp32 [count][q_heads][head_dim] at 0
    uint64_t lse;      // out: fp32 [count][q_heads], max + log(sum)
    // out: fp32 [count][q_heads], share of the softmax weight that the tokens used hold. Dense: 1;
    // sparf (alpha) and pages: the predicted share, with `audit` the exact one.
    uint64_t captured;
    uint64_t status; // out: u32 [count], NVMe status of each item; others are unharmed
    uint64_t out_bytes;
};
// False when the sizes overflow.
bool attend_layout(struct attend_layout *layout, uint32_t count, uint32_t q_heads,
                   uint32_t kv_heads, uint32_t head_dim, bool append);

// Counter tables: u16 version, u16 count, u32 reserved, then u64 values in this order. Later
// versions append. X(name, what it means)
#define IDENTIFY_MAP(X)                                                                            \
    X(dram_bytes, "the drive's DRAM for KV, maps and tickets")                                     \
    X(capacity_bytes, "flash in all")                                                              \
    X(page_bytes, "smallest program and read")                                                     \
    X(block_bytes, "erase unit")                                                                   \
    X(dies, "dies")                                                                                \
    X(read_bytes, "best read size")                                                                \
    X(max_tickets, "ATTENDs and READs that may wait for their COLLECT")                            \
    X(max_items, "items of one command")                                                           \
    X(ticket_ms, "how long a ticket waits for its COLLECT at least, and a COLLECT for its ticket") \
    X(methods, "bit m: spaces and ATTENDs of method m are taken")                                  \
    X(kv_types, "bit t: spaces that store K and V as type t are taken")

// The same for STAT, in groups: what every drive counts, what audits of any method say, and what
// each method counts of its own. X(name, how, what it means); `how` is what becomes of it when
// several drives are one to the host, and when one of them has gone: STAT_SUM and so on, below.
#define STAT_DRIVE_MAP(X)                                                                          \
    X(stream_bytes, SUM, "stream bytes accepted (K and V of whole token groups)")                  \
    X(flash_program_bytes, SUM, "bytes programmed, summaries and padding included")                \
    X(flash_read_bytes, SUM, "bytes read from flash")                                              \
    X(flash_erased_blocks, SUM, "blocks erased")                                                   \
    X(live_bytes, NOW, "stream bytes on flash that a sequence still refers to")                    \
    X(allocated_bytes, NOW, "flash held by blocks that are not free")                              \
    X(free_bytes, NOW, "flash that can still be allocated")                                        \
    X(copied_bytes, SUM, "valid pages moved by reclaim: always 0")                                 \
    X(attended_tokens, SAME, "tokens attended, summed over items and layers")                      \
    X(attended_tokens_from_flash, SAME, "those in rows on flash, not in a group buffer")           \
    X(attended_tokens_programming, SAME,                                                           \
      "of these, served from DRAM as their program was under way")                                 \
    X(checksum_errors, SUM, "pages whose checksum did not match their record")                     \
    X(sequences, NOW_SAME, "sequences alive")                                                      \
    X(rows_in_dram, NOW, "group buffers in use")                                                   \
    X(dram_used_bytes, NOW, "of dram_bytes")                                                       \
    X(dram_peak_bytes, PEAK, "of dram_bytes")                                                      \
    X(read_ahead_rows, SUM, "rows read before an ATTEND asked for them")                           \
    X(read_ahead_hits, SUM, "those that an ATTEND then used")                                      \
    X(write_wait_ns, TOGETHER, "time WRITE and ATTEND waited for group buffers")                   \
    X(dead_bytes, NOW, "of allocated_bytes: nobody refers to it, it waits for being erased")       \
    X(cache_hit_bytes, SUM, "found in the row cache instead of being read")                        \
    X(cached_bytes, NOW, "of the row cache, now")                                                  \
    X(bridged_bytes, SUM, "gaps that were read as they cost less than a request")                  \
    X(replaced_rows, SUM, "rows placed again as their program failed")

#define STAT_AUDIT_MAP(X)                                                                          \
    X(audit_read_bytes, SUM, "read by audits only")                                                \
    X(audits, SUM, "query heads whose captured mass was measured")                                 \
    X(captured_sum, SUM, "of these, the sum of captured mass, in millionths")                      \
    X(captured_worst, LEAST, "of these, the least captured mass, in millionths")

#define STAT_SPARF_MAP(X)                                                                          \
    X(sparf_steps, SAME, "sparf attention of one sequence in one layer")                           \
    X(dense_pages, SUM, "pages on flash that dense attention would have read in these")            \
    X(dense_bytes, SUM, "their bytes")                                                             \
    X(channel_pages, SUM, "pages of the channel-indexed K that passed the page filter: read")      \
    X(channel_bytes, SUM, "their bytes")                                                           \
    X(channel_kept_bytes, SUM, "of these, the chosen channels")                                    \
    X(token_pages, SUM, "pages of token groups that passed the page filter: read")                 \
    X(token_bytes, SUM, "their bytes")                                                             \
    X(token_kept_bytes, SUM, "of these, K and V of the chosen tokens")                             \
    X(tail_bytes, SUM, "K read by token to rank tokens without a channel row")                     \
    X(mean_bytes, SUM, "V read to complete the mean value after a FORK or truncation")             \
    X(build_read_bytes, SUM, "K read by token to build channel rows")                              \
    X(channel_program_bytes, SUM, "programmed for channel rows, summaries excluded")               \
    X(channel_lost_rows, SUM,                                                                      \
      "channel rows given up as flash failed; ranked by token from then on")                       \
    X(sparf_dram_bytes, NOW, "DRAM that sparf adds: page buffers, scores, sums of V")

#define STAT_PAGES_MAP(X)                                                                          \
    X(pages_steps, SAME, "pages attention of one sequence in one layer")                           \
    X(pages_dense_bytes, SUM, "on flash, that dense attention would have read in these")           \
    X(pages_read_bytes, SUM, "in pages that hold chosen tokens, or an index on flash: read")       \
    X(pages_index_bytes, SUM, "of these, of the index")                                            \
    X(pages_predicted, SUM, "query heads whose captured mass was predicted")                       \
    X(pages_predicted_sum, SUM, "of these, the sum of predicted captured mass, in millionths")     \
    X(pages_dram_bytes, NOW, "DRAM that pages adds: buffers, weights, index and clusters")         \
    X(pages_choose_ns, TOGETHER, "time that all workers were busy choosing, results included")

// A new method adds its map here and its line in command.c.
#define STAT_MAP(X)                                                                                \
    STAT_DRIVE_MAP(X)                                                                              \
    STAT_AUDIT_MAP(X)                                                                              \
    STAT_SPARF_MAP(X)                                                                              \
    STAT_PAGES_MAP(X)

enum stat_how {
    STAT_SUM,      // adds up
    STAT_SAME,     // adds up, but drives that share the heads of a sequence count the same
    STAT_TOGETHER, // adds up over time; of drives at the same time, the most
    STAT_NOW,      // as it is now
    STAT_NOW_SAME, // as it is now, but drives that share heads count the same
    STAT_PEAK,     // adds up over drives; the most over time
    STAT_LEAST,    // where there were audits
};
// Whose it is.
enum { STAT_OF_DRIVE = -2, STAT_OF_AUDITS = -1 }; // or an enum attend_method
struct stat_row {
    const char *name, *text;
    enum stat_how how;
    int of;
};

#define COUNTER_FIELD(name, text)   uint64_t name;
#define STAT_FIELD(name, how, text) uint64_t name;
struct drive_identity {
    IDENTIFY_MAP(COUNTER_FIELD)
};
struct drive_stats {
    STAT_MAP(STAT_FIELD)
};
#undef COUNTER_FIELD
#undef STAT_FIELD

enum {
    IDENTIFY_TABLE_BYTES = 8 + sizeof(struct drive_identity),
    STAT_TABLE_BYTES = 8 + sizeof(struct drive_stats),
    STAT_ROWS = sizeof(struct drive_stats) / sizeof(uint64_t),
};
extern const struct stat_row stat_rows[STAT_ROWS]; // in the order of the fields
static inline uint64_t *stat_at(struct drive_stats *stats, size_t row)
{
    return (uint64_t *)stats + row;
}
static inline uint64_t stat_of(const struct drive_stats *stats, size_t row)
{
    return ((const uint64_t *)stats)[row];
}
void identity_encode(uint8_t out[IDENTIFY_TABLE_BYTES], const struct drive_identity *identity);
int identity_decode(struct drive_identity *identity, const void *in, size_t bytes);
void stats_encode(uint8_t out[STAT_TABLE_BYTES], const struct drive_stats *stats);
int stats_decode(struct drive_stats *stats, const void *in, size_t bytes);

// Name of an opcode for messages; "unknown command" when it is none.
const char *opcode_name(uint8_t opcode);

#endif
