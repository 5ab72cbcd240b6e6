/* A libnvidia-ml.so.1 that plays what a script says.
 *
 * $NVML_STUB_SCRIPT is read again at every call, so that a test can change the play; $NVML_STUB_CALLS gets a line
 * "FUNCTION DEVICE" per call (DEVICE is "0", "0/1" for a MIG instance, "-" for none), "hang ..." when a call starts to
 * hang, "back ..." when it goes on, "error ..." when it fails as the script wants. Lines of the script:
 *
 *   device D used MIB reserved MIB total MIB util PERCENT mig 0|1 name TEXT
 *   instance D/I used MIB reserved MIB total MIB
 *   process D[/I] compute|graphics|mps PID MIB          MIB -1: not available
 *   sample D PID TIME_US PERCENT
 *   error FUNCTION D[/I]|* CODE
 *   hang FUNCTION D[/I]|*
 *
 * Structures and signatures are those of NVIDIA's nvml.h, as pynvml calls them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_DEVICES = 16, MAX_INSTANCES = 8, MAX_LINES = 512, LINE = 256 };

typedef struct { int device, instance; } handle_t;
typedef struct { unsigned long long total, free, used; } memory_v1_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned pid; unsigned long long time_us; unsigned sm, mem, enc, dec; } sample_t;
typedef struct { char lines[MAX_LINES][LINE]; int count; } script_t;

static handle_t handles[MAX_DEVICES][MAX_INSTANCES + 1];

static script_t *read_script(void) {
    script_t *script = calloc(1, sizeof *script);
    FILE *file = fopen(getenv("NVML_STUB_SCRIPT"), "r");
    if (!script || !file) abort();
    while (script->count < MAX_LINES && fgets(script->lines[script->count], LINE, file)) {
        char *line = script->lines[script->count++];
        line[strcspn(line, "\n")] = 0;
    }
    fclose(file);
    return script;
}

static void note(const char *what, const char *function, const char *where) {
    char line[LINE];
    int length = snprintf(line, sizeof line, "%s%s %s\n", what, function, where);
    int file = open(getenv("NVML_STUB_CALLS"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (file < 0 || write(file, line, length) != length) abort();
    close(file);
}

static void name_of(const handle_t *handle, char *where) {
    if (!handle) strcpy(where, "-");
    else if (handle->instance < 0) sprintf(where, "%d", handle->device);
    else sprintf(where, "%d/%d", handle->device, handle->instance);
}

/* Says whether the script has the directive for this call, with its code. */
static int directed(const char *directive, const char *function, const char *where, int *code) {
    script_t *script = read_script();
    int found = 0;
    for (int i = 0; i < script->count && !found; i++) {
        char word[32], name[80], at[16];
        int number = 0;
        int fields = sscanf(script->lines[i], "%31s %79s %15s %d", word, name, at, &number);
        if (fields < 3 || strcmp(word, directive) || strcmp(name, function)) continue;
        if (strcmp(at, "*") && strcmp(at, where)) continue;
        *code = number;
        found = 1;
    }
    free(script);
    return found;
}

/* Notes the call, hangs as long as the script says so, and returns the error that it asks for. */
static int play(const char *function, const handle_t *handle) {
    char where[32];
    int code = SUCCESS, ignored;
    name_of(handle, where);
    note("", function, where);
    if (directed("hang", function, where, &ignored)) {
        struct timespec pause = {0, 2000000};
        note("hang ", function, where);
        while (directed("hang", function, where, &ignored)) nanosleep(&pause, NULL);
        note("back ", function, where);
    }
    if (directed("error", function, where, &code)) note("error ", function, where);
    return code;
}

static int find(const handle_t *handle, long *used, long *reserved, long *total, int *util, int *mig, char *name) {
    script_t *script = read_script();
    char where[32], at[16];
    int found = 0;
    name_of(handle, where);
    for (int i = 0; i < script->count && !found; i++) {
        const char *line = script->lines[i];
        if (sscanf(line, "device %15s used %ld reserved %ld total %ld util %d mig %d name %95[^\n]", at, used, reserved,
                   total, util, mig, name) == 7 ||
            sscanf(line, "instance %15s used %ld reserved %ld total %ld", at, used, reserved, total) == 4)
            found = !strcmp(at, where);
    }
    free(script);
    return found;
}

static int exists(const handle_t *handle) {
    long used, reserved, total;
    int util, mig;
    char name[96];
    return find(handle, &used, &reserved, &total, &util, &mig, name);
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    for (int d = 0; d < MAX_DEVICES; d++)
        for (int i = 0; i <= MAX_INSTANCES; i++) handles[d][i] = (handle_t){d, i - 1};
    return play("nvmlInitWithFlags", NULL);
}

int nvmlShutdown(void) { return play("nvmlShutdown", NULL); }

const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the stub"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = play("nvmlDeviceGetCount_v2", NULL);
    for (*count = 0; *count < MAX_DEVICES && exists(&handles[*count][0]);) ++*count;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle_t **handle) {
    if (index >= MAX_DEVICES) return INVALID_ARGUMENT;
    *handle = &handles[index][0];
    return play("nvmlDeviceGetHandleByIndex_v2", *handle);
}

int nvmlDeviceGetName(handle_t *handle, char *text, unsigned length) {
    long used, reserved, total;
    int util, mig, code = play("nvmlDeviceGetName", handle);
    char name[96];
    if (code) return code;
    if (!find(handle, &used, &reserved, &total, &util, &mig, name)) return NOT_FOUND;
    snprintf(text, length, "%s", name);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(handle_t *handle, utilization_t *rates) {
    long used, reserved, total;
    int util, mig, code = play("nvmlDeviceGetUtilizationRates", handle);
    char name[96];
    if (code) return code;
    if (handle->instance >= 0 || !find(handle, &used, &reserved, &total, &util, &mig, name) || mig) return NOT_SUPPORTED;
    *rates = (utilization_t){util, 0};
    return SUCCESS;
}

/* The first version counts what the driver reserves as used, the second does not. */
static int memory_of(const char *function, handle_t *handle, long *used, long *reserved, long *total) {
    int util, mig, code = play(function, handle);
    char name[96];
    if (code) return code;
    return find(handle, used, reserved, total, &util, &mig, name) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(handle_t *handle, memory_v1_t *memory) {
    long used, reserved, total;
    int code = memory_of("nvmlDeviceGetMemoryInfo", handle, &used, &reserved, &total);
    if (!code) *memory = (memory_v1_t){(unsigned long long)total << 20, 0, (unsigned long long)(used + reserved) << 20};
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(handle_t *handle, memory_v2_t *memory) {
    long used, reserved, total;
    int code = memory_of("nvmlDeviceGetMemoryInfo_v2", handle, &used, &reserved, &total);
    if (!code && memory->version != 0x02000028) return 25;
    if (!code) {
        memory->total = (unsigned long long)total << 20;
        memory->reserved = (unsigned long long)reserved << 20;
        memory->used = (unsigned long long)used << 20;
    }
    return code;
}

static int processes(const char *function, const char *kind, handle_t *handle, unsigned *count, process_t *infos) {
    int code = play(function, handle);
    unsigned found = 0, room = *count;
    char where[32], at[16], word[16];
    if (code) return code;
    script_t *script = read_script();
    name_of(handle, where);
    for (int i = 0; i < script->count; i++) {
        unsigned pid;
        long mib;
        if (sscanf(script->lines[i], "process %15s %15s %u %ld", at, word, &pid, &mib) != 4) continue;
        if (strcmp(at, where) || strcmp(word, kind)) continue;
        if (infos && found < room)
            infos[found] = (process_t){pid, mib < 0 ? -1ULL : (unsigned long long)mib << 20, -1, -1};
        found++;
    }
    free(script);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESS_LIST(function, kind) \
    int function(handle_t *handle, unsigned *count, process_t *infos) { \
        return processes(#function, kind, handle, count, infos); \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")

int nvmlDeviceGetProcessUtilization(handle_t *handle, sample_t *samples, unsigned *count, unsigned long long since_us) {
    int code = play("nvmlDeviceGetProcessUtilization", handle);
    unsigned found = 0, room = *count;
    char where[32], at[16];
    if (code) return code;
    script_t *script = read_script();
    name_of(handle, where);
    for (int i = 0; i < script->count; i++) {
        sample_t one = {0};
        if (sscanf(script->lines[i], "sample %15s %u %llu %u", at, &one.pid, &one.time_us, &one.sm) != 4) continue;
        if (strcmp(at, where) || one.time_us <= since_us) continue;
        if (samples && found < room) samples[found] = one;
        found++;
    }
    free(script);
    *count = found;
    if (!found) return NOT_FOUND;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetMigMode(handle_t *handle, unsigned *current, unsigned *pending) {
    long used, reserved, total;
    int util, mig, code = play("nvmlDeviceGetMigMode", handle);
    char name[96];
    if (code) return code;
    if (handle->instance >= 0 || !find(handle, &used, &reserved, &total, &util, &mig, name)) return NOT_SUPPORTED;
    *current = *pending = mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(handle_t *handle, unsigned *count) {
    *count = MAX_INSTANCES - 1;
    return play("nvmlDeviceGetMaxMigDeviceCount", handle);
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle_t *handle, unsigned index, handle_t **instance) {
    int code = play("nvmlDeviceGetMigDeviceHandleByIndex", handle);
    if (code) return code;
    if (index >= MAX_INSTANCES) return INVALID_ARGUMENT;
    *instance = &handles[handle->device][index + 1];
    return exists(*instance) ? SUCCESS : NOT_FOUND;
}
