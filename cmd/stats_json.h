// SPDX-License-Identifier: Apache-2.0
// --stats FILE.json. docs/stats.md explains every name.
#ifndef INST_CMD_STATS_JSON_H
#define INST_CMD_STATS_JSON_H

#include "cmd/terminal.h"

#include <stdio.h>

// 0 or an exit code, with the error line printed. Closes the file.
int stats_json_write(FILE *file, const char *path, const struct inst_model_info *info,
                     const struct run_result *result, const int32_t *tokens, size_t n_tokens);

#endif
