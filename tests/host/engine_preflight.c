// SPDX-License-Identifier: Apache-2.0
// What is said about a place, a context and a budget before any work begins: KV in memory is known
// as such, below overlays too, counts, and is refused where it does not fit; so is a disk without
// room for a context that was asked for. What is only worth knowing is noted, and nothing else is.
#include "host/engine/kv_place.h"
#include "host/engine/system.h"
#include "tests/host/engine_helper.h"
#include "tests/needs.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/wait.h>

static char root[64], memory[64]; // directories; the second in /dev/shm, "" without one
static char model[64];
// Trained for twice as many tokens as the disk at `root` and memory have room for, at so many bytes
// of KV each.
static char large[80];
static uint64_t large_context;
enum { LARGE_KV = 8 * 8 * 64 * 4 };

static bool is_memory(const char *path)
{
    struct statfs fs;
    return !statfs(path, &fs) && (uint32_t)fs.f_type == TMPFS_MAGIC;
}

static void write_mounts(char path[96], const char *text)
{
    snprintf(path, 96, "%s/mounts", root);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void memory_is_known_as_such(void **state)
{
    (void)state;
    struct kv_place place;
    struct statvfs room;
    assert_int_equal(kv_place_look(&place, root, NULL), 0);
    assert_int_equal(place.memory, is_memory(root));
    assert_true(place.type[0]);
    assert_int_equal(statvfs(root, &room), 0);
    uint64_t all = (uint64_t)room.f_blocks * room.f_frsize;
    assert_true(place.free_bytes > 0 && place.free_bytes <= all);
    if (!*memory)
        leave_out("KV in memory: /dev/shm is no tmpfs that can be written");
    assert_int_equal(kv_place_look(&place, memory, NULL), 0);
    assert_true(place.memory);
    assert_string_equal(place.type, "tmpfs");
    // What is still to be made lies where the nearest directory does, links followed.
    char path[128];
    snprintf(path, sizeof path, "%s/not/yet/there", memory);
    assert_int_equal(kv_place_look(&place, path, NULL), 0);
    assert_true(place.memory);
    snprintf(path, sizeof path, "%s/link", root);
    assert_int_equal(symlink(memory, path), 0);
    assert_int_equal(kv_place_look(&place, path, NULL), 0);
    assert_true(place.memory);
    // Without a list of mounts the file system still says what it is.
    assert_int_equal(kv_place_look_in(&place, memory, "/does/not/exist", NULL), 0);
    assert_true(place.memory);
}

// `format` has the path of the place and of the upper directory.
static void look_through(struct kv_place *place, const char *lines, const char *upper)
{
    char mounts[96], text[1200], at[96];
    snprintf(at, sizeof at, "%s/merged", root);
    (void)mkdir(at, 0777);
    snprintf(text, sizeof text, lines, root, upper);
    write_mounts(mounts, text);
    assert_int_equal(kv_place_look_in(place, at, mounts, NULL), 0);
}

static void overlays_are_looked_through(void **state)
{
    (void)state;
    static const char plain[] = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
                                "30 22 0:27 / %s/merged rw,relatime shared:1 - overlay overlay "
                                "rw,lowerdir=/a:/b,upperdir=%s,workdir=/w\n"
                                "31 22 0:28 / /elsewhere rw - ext4 /dev/vdb rw\n";
    struct kv_place place;
    look_through(&place, plain, root);
    assert_int_equal(place.memory, is_memory(root));
    assert_non_null(strstr(place.type, "overlay upon "));
    look_through(&place, plain, "/does/not/exist"); // outside of a container: nothing is known
    assert_string_equal(place.type, is_memory(root) ? "tmpfs" : "overlay");
    assert_int_equal(place.memory, is_memory(root));
    if (is_memory(root) || !*memory)
        leave_out("overlays upon memory: needs /tmp on a disk and a tmpfs in /dev/shm");
    look_through(&place, plain, memory);
    assert_true(place.memory);
    assert_string_equal(place.type, "overlay upon tmpfs");
    // Names with characters that the list escapes.
    char odd[96], escaped[96];
    snprintf(odd, sizeof odd, "%s/a b,c", memory);
    assert_int_equal(mkdir(odd, 0777), 0);
    snprintf(escaped, sizeof escaped, "%s/a\\040b\\054c", memory);
    look_through(&place, plain, escaped);
    assert_true(place.memory);
    rmdir(odd);
    // What is mounted last at a place hides what was there; a longer name is not below a shorter.
    look_through(&place,
                 "30 22 0:27 / %1$s/merged rw - overlay o rw,upperdir=%2$s,workdir=/w\n"
                 "31 22 0:28 / %1$s/merged rw - ext4 /dev/vdb rw\n",
                 memory);
    assert_false(place.memory);
    look_through(&place,
                 "30 22 0:27 / %1$s/merge rw - overlay o rw,upperdir=%2$s,workdir=/w\n"
                 "29 22 0:28 / / rw - xfs /dev/vdb rw\n",
                 memory);
    assert_string_equal(place.type, "xfs");
    // Lines that are none change nothing.
    look_through(&place,
                 "\n30\n30 22 0:27 / %s/merged\n30 22 0:27 / / rw - \nx - y\n"
                 "30 22 0:27 / / rw - overlay\n31 22 1:0 / /%s rw - ext4 /dev/vdb rw\n",
                 memory);
    assert_false(place.memory);
}

static void ram_disks_are_memory(void **state)
{
    (void)state;
    struct kv_place place;
    look_through(&place, "30 22 252:0 / %s rw - ext4 /dev/zram0 rw,%s\n", "x");
    assert_true(place.memory);
    look_through(&place, "30 22 1:0 / %s rw - ext4 /dev/ram1 rw,%s\n", "x");
    assert_true(place.memory);
    look_through(&place, "30 22 1:0 / %s rw - ext4 /dev/sda1 rw,%s\n", "x");
    assert_int_equal(place.memory, is_memory(root));
}

// In a mount space of its own, where that is allowed.
static int child_on_a_real_overlay(void)
{
    char merged[96], options[400], lower[96], upper[96], work[96];
    struct kv_place place;
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return 77;
    snprintf(merged, sizeof merged, "%s/real", root);
    snprintf(lower, sizeof lower, "%s/lower", root);
    snprintf(upper, sizeof upper, "%s/upper", memory);
    snprintf(work, sizeof work, "%s/work", memory);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work);
    if (mkdir(merged, 0777) || mkdir(lower, 0777) || mkdir(upper, 0777) || mkdir(work, 0777))
        return 1;
    if (mount("overlay", merged, "overlay", 0, options))
        return 77;
    if (kv_place_look(&place, merged, NULL))
        return 2;
    return place.memory && !strcmp(place.type, "overlay upon tmpfs") ? 0 : 3;
}

static int run_child(int (*body)(void))
{
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(body());
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_real_overlay(void **state)
{
    (void)state;
    int code = *memory ? run_child(child_on_a_real_overlay) : 77;
    if (code == 77)
        leave_out("a real overlay upon memory: it cannot be mounted here");
    assert_int_equal(code, 0);
}

static int child_without_rights(void)
{
    struct kv_place place;
    struct inst_msg msg = {0};
    if (!geteuid() && setresuid(65534, 65534, 65534))
        return 77;
    if (kv_place_look(&place, root, &msg) != INST_EIO || !strstr(msg.text, "cannot be written") ||
        !strstr(msg.text, root) || !strstr(msg.text, "--kv"))
        return 1;
    return 0;
}

static void places_that_cannot_hold_kv(void **state)
{
    (void)state;
    struct kv_place place;
    struct inst_msg msg = {0};
    char path[96];
    assert_int_equal(chmod(root, 0500), 0);
    int code = run_child(child_without_rights);
    assert_int_equal(chmod(root, 0700), 0);
    assert_true(code == 0 || code == 77);
    if (code == 77)
        not_tested("a place that may not be written: nobody else can be made here");
    snprintf(path, sizeof path, "%s/file", root);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(kv_place_look(&place, path, &msg), INST_EIO);
    assert_non_null(strstr(msg.text, "--kv"));
    strcat(path, "/below");
    assert_int_equal(kv_place_look(&place, path, NULL), INST_EIO);
}

// ---- the engine --------------------------------------------------------------------------------

static int open_at(inst_engine **e, const char *kv, const char *file, struct inst_options o,
                   struct inst_msg *msg)
{
    o.model = file;
    o.kv = &kv;
    o.n_kv = 1;
    memset(msg, 0, sizeof *msg);
    return inst_engine_open(e, &o, msg);
}

// Opens and returns what was noted, as lines.
static const char *notes_at(const char *kv, const char *file, struct inst_options o)
{
    static char text[2048];
    struct inst_model_info info;
    struct inst_msg msg;
    inst_engine *e;
    if (open_at(&e, kv, file, o, &msg))
        fail_msg("%s", msg.text);
    inst_engine_info(e, &info);
    size_t n = 0;
    text[0] = 0;
    for (size_t i = 0; i < info.n_notes; i++) {
        assert_null(strchr(info.notes[i], '\n'));
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\n", info.notes[i]);
    }
    inst_engine_close(e);
    return text;
}

// A budget that is enough for contexts of `large`.
static uint64_t enough(uint64_t context)
{
    return (64 << 20) + 64 * context;
}

static void only_what_is_worth_it_is_noted(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20;
    const char *text = notes_at(root, model, (struct inst_options){.memory = 16 * mib});
    assert_true(is_memory(root) ? strstr(text, "is memory") != NULL : !*text);
    assert_string_equal(notes_at("ram:16M", model, (struct inst_options){.memory = 16 * mib}), "");
    assert_string_equal(notes_at("null:", model, (struct inst_options){.context = 1024}), "");
    text = notes_at("null:", model, (struct inst_options){.context = 1025, .memory = 16 * mib});
    assert_non_null(strstr(text, "a context of 1025 tokens: the model was trained for 1024"));
    assert_string_equal(strchr(text, '\n'), "\n"); // and no more
    text = notes_at("null:", model, (struct inst_options){.memory = 1ull << 50});
    assert_non_null(strstr(text, "--memory 1.0P: only "));
    // Of a RAM drive what the context needs counts, not what it could hold.
    struct inst_options o = {.memory = 64 * mib, .context = 1024};
    assert_string_equal(notes_at("ram:1T", large, o), "");
    o.memory = enough(large_context);
    o.context = large_context;
    assert_non_null(strstr(notes_at("ram:1T", large, o), "KV in memory, up to "));
}

static void kv_in_memory_counts(void **state)
{
    (void)state;
    const uint64_t mib = 1 << 20;
    struct inst_msg msg;
    inst_engine *e;
    if (!*memory)
        leave_out("KV in memory: /dev/shm is no tmpfs that can be written");
    const char *text = notes_at(memory, model, (struct inst_options){.memory = 16 * mib});
    assert_non_null(strstr(text, "is memory (tmpfs): KV there, up to "));
    assert_non_null(strstr(text, "counts beside --memory 16.0M"));
    // The default budget is a quarter of what KV leaves.
    struct inst_model_info info;
    uint64_t quarter = system_memory_available() / 4;
    struct inst_options o = {.context = quarter / LARGE_KV};
    assert_int_equal(open_at(&e, memory, large, o, &msg), 0);
    inst_engine_info(e, &info);
    assert_in_range(info.memory, quarter / 2, quarter * 7 / 8);
    inst_engine_close(e);
    // What does not fit is refused, whoever chose the context; a limit makes it fit.
    for (int own = 0; own < 2; own++) {
        o = (struct inst_options){.memory = enough(large_context),
                                  .context = own ? 0 : large_context};
        assert_int_equal(open_at(&e, memory, large, o, &msg), INST_ENOSPC);
        assert_non_null(strstr(msg.text, "is memory (tmpfs): KV of a context of "));
        assert_non_null(strstr(msg.text, "available"));
    }
    o.kv_limit = 32 * mib;
    const char *most = strstr(notes_at(memory, large, o), "up to ");
    assert_non_null(most);
    assert_in_range(strtoul(most + strlen("up to "), NULL, 10), 16, 32);
}

static void a_disk_must_have_room(void **state)
{
    (void)state;
    struct kv_place place;
    struct inst_msg msg;
    inst_engine *e;
    assert_int_equal(kv_place_look(&place, root, NULL), 0);
    if (place.memory || place.free_bytes > 3ull << 40) // a file has at most 16 TiB
        leave_out("a disk without room: /tmp is memory, or has more than 3 TiB");
    // Asked for, it is refused; as the model's own context it is noted.
    struct inst_options o = {.memory = enough(large_context), .context = large_context};
    assert_int_equal(open_at(&e, root, large, o, &msg), INST_ENOSPC);
    assert_non_null(strstr(msg.text, root));
    assert_non_null(strstr(msg.text, " are free"));
    char tokens[64];
    snprintf(tokens, sizeof tokens, "KV of a context of %llu tokens takes ",
             (unsigned long long)large_context);
    assert_non_null(strstr(msg.text, tokens));
    o.context = 0;
    assert_non_null(strstr(notes_at(root, large, o), "less text fits"));
    o.kv_limit = 16 << 20;
    assert_null(strstr(notes_at(root, large, o), "less text fits"));
    o.context = large_context;
    assert_null(strstr(notes_at(root, large, o), "less text fits"));
}

static void write_large(void)
{
    struct synth_options o;
    struct inst_msg msg = {0};
    struct kv_place place;
    assert_int_equal(kv_place_look(&place, root, NULL), 0);
    uint64_t room = place.free_bytes, available = system_memory_available();
    large_context = 2 * (room > available ? room : available) / LARGE_KV;
    synth_defaults(&o);
    o.layers = 8;
    o.width = 64;
    o.heads = o.kv_heads = 8;
    o.head_dim = 64;
    o.ffn = 64;
    o.context = (uint32_t)large_context;
    o.type = TENSOR_F16;
    snprintf(large, sizeof large, "%s/large.gguf", root);
    if (large_context > 1u << 31 || synth_to(&o, large, &msg))
        fail_msg("%s", msg.text);
}

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/instinfer-preflight-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    strcpy(memory, "/dev/shm/instinfer-preflight-XXXXXX");
    if (!is_memory("/dev/shm") || !mkdtemp(memory))
        *memory = 0;
    write_model(model, TENSOR_F16);
    write_large();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[200];
    unlink(model);
    snprintf(command, sizeof command, "rm -rf %s %s", root, memory);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_known_as_such),
        cmocka_unit_test(overlays_are_looked_through),
        cmocka_unit_test(ram_disks_are_memory),
        cmocka_unit_test(a_real_overlay),
        cmocka_unit_test(places_that_cannot_hold_kv),
        cmocka_unit_test(only_what_is_worth_it_is_noted),
        cmocka_unit_test(kv_in_memory_counts),
        cmocka_unit_test(a_disk_must_have_room),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
