// SPDX-License-Identifier: Apache-2.0
// The methods that every drive has. Another one is added here and nowhere else above attend/.
#include "drive/attend/walk.h"

static const struct method *const own_methods[] = {&method_dense, &method_sparf, &method_pages,
                                                   NULL};

void attend_methods(struct attend_env *env, const struct method *const *extra)
{
    int n = 0;
    for (int i = 0; own_methods[i]; i++)
        env->methods[n++] = own_methods[i];
    for (int i = 0; extra && extra[i] && n < METHODS_MAX; i++)
        env->methods[n++] = extra[i];
    env->methods[n] = NULL;
}

const struct method *attend_method(const struct attend_env *env, uint32_t id)
{
    for (int i = 0; env->methods[i]; i++) {
        if (env->methods[i]->id == id)
            return env->methods[i];
    }
    return NULL;
}
