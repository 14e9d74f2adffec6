// SPDX-License-Identifier: Apache-2.0
// --stats FILE.json. docs/stats.md explains every name.
#ifndef INST_CMD_STATS_JSON_H
#define INST_CMD_STATS_JSON_H

#include "cmd/output_file.h"
#include "cmd/terminal.h"

// What the engine has to say at the end of a run: *info anew, and the engine's part of *result. 0 or
// INST_E*.
int stats_take(inst_engine *e, struct inst_model_info *info, struct run_result *result,
               struct inst_msg *msg);
// Writes and closes. 0 or an exit code, with the error line printed.
int stats_json_write(struct output_file *out, const struct inst_model_info *info,
                     const struct run_result *result, const int32_t *tokens, size_t n_tokens);

#endif
