// SPDX-License-Identifier: Apache-2.0
// The answers that a batch has so far, in a file of its own, so that whatever ends the program no
// finished line is lost: a head that says of what the answers are, then a record for each in the
// order in which they were finished. One process at a time has it.
//
//     {"instinfer_batch":1, ...}                  the head, one line
//     LINE PRINT {"id":...}                       number of the line; xxh3 of the answer, 16 digits
//
// A record that a dying process or machine left torn is cut off with all that follows.
#ifndef INST_CMD_BATCH_PART_H
#define INST_CMD_BATCH_PART_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include <stdio.h>

struct batch_part {
    const char *path;
    int fd;       // -1: not open
    FILE *reader; // of the same file
    cJSON *head;
    uint64_t begin, end; // of the records
    char *text;          // the record read last
    size_t room;
};

// Opens or makes the file and locks it. 0 or an exit code, with the error line printed.
int batch_part_open(struct batch_part *part, const char *path);
// The same of a file that is only read.
int batch_part_open_whole(struct batch_part *part, const char *path);
// Frees; an empty file goes.
void batch_part_close(struct batch_part *part);

// Takes `head`, writes it into an empty file or compares: a difference but of the key `date` is
// refused by name. part->head is the file's.
int batch_part_begin(struct batch_part *part, cJSON *head);

// Reads the head of a file that must have one.
int batch_part_read_head(struct batch_part *part);

// Each record in order. Return an exit code to end it.
typedef int batch_record_fn(void *user, uint32_t number, uint64_t offset, const char *answer,
                            size_t bytes);
int batch_part_each(struct batch_part *part, batch_record_fn *fn, void *user);
// Cuts what batch_part_each did not reach.
int batch_part_cut(struct batch_part *part);

// Appends a record; *offset: where it lies.
int batch_part_add(struct batch_part *part, uint32_t number, const char *answer, size_t bytes,
                   uint64_t *offset);
// The answer of the record there, until the next call; NULL with the error line printed.
const char *batch_part_read(struct batch_part *part, uint64_t offset, size_t *bytes);

// The text of a head's key, "" when there is none.
const char *batch_head_text(const cJSON *head, const char *key);
// 0, or an exit code when the heads differ in anything but the date and the key `but`.
int batch_head_compare(const char *path, const cJSON *head, const cJSON *other, const char *but);

#endif
