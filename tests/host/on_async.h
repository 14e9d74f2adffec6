// SPDX-License-Identifier: Apache-2.0
// Included before everything by a test that is built a second time: its engines compute on the
// asynchronous device.
#ifndef INST_TESTS_HOST_ON_ASYNC_H
#define INST_TESTS_HOST_ON_ASYNC_H

#include "host/engine/engine.h"
#include "tests/host/compute_async.h"

#define engine_open_on(out, options, link, msg)                                                    \
    engine_open_with(out, options, link, &compute_async, msg)
#define inst_engine_open(out, options, msg)                                                        \
    engine_open_with(out, options, NULL, &compute_async, msg)

#endif
