/* sentinel-collector: starts Python where no variable of the environment can keep it from starting.
 *
 * The environment is meant for the job. PYTHONHOME, a module of PYTHONPATH that shadows the standard library or a bad
 * PYTHONHASHSEED end an interpreter before its first line of ours. -E ignores these variables, -P the directory of the
 * script. -S leaves out `site`: it takes 4 ms of the job's start and runs what others have put beside our packages. The
 * script finds these itself. A shell could pass the flags too, but dash drops variables whose names are no identifiers (exported bash
 * functions), adds PWD, and needs a process for what is not built in.
 *
 * The script beside this program has the same name and ".py"; the installer has written its interpreter into its first
 * line. When that cannot be started, the job is run all the same, and one line says that it is not recorded.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { MAX_PATH = 4096, NOT_EXECUTABLE = 126, NOT_FOUND = 127, FLAGS = 10 };
enum { DATA_BYTES = 7 << 20, ADDRESS_BYTES = 15 << 20 };

static char script[MAX_PATH + 4];
static char head[2 * MAX_PATH];
static char ignored[64] = "sentinel-ignored=";

/* The end of a word that begins at `text`: quoted, or up to the next space. The word is cut there. */
static char *word(char *text) {
    char quote = *text == '"' || *text == '\'' ? *text++ : 0;
    char *end = text + (quote ? strcspn(text, (char[]){quote, 0}) : strcspn(text, " \n"));
    *end = 0;
    return text;
}

/* The interpreter of `script`, or NULL. Installers write "#!PATH", or, where the path is too long for the kernel or has
 * a space, "#!/bin/sh" and a second line "'''exec' PATH "$0" "$@"". */
static char *interpreter(void) {
    static const char shell[] = "#!/bin/sh\n'''exec' ";
    int file = open(script, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, head, sizeof head - 1);
    if (file >= 0) close(file);
    if (size < 0) return NULL;
    if (!strncmp(head, shell, sizeof shell - 1)) return word(head + sizeof shell - 1);
    if (!strncmp(head, "#!/", 3)) return word(head + 2);
    errno = ENOEXEC;
    return NULL;
}

/* Two variables change where an interpreter looks for its own modules, also with -E. Each is renamed for the time of its
 * start; the script gives the job the variable back. */
static const char prefix[] = "SENTINEL_JOB_";

static void hide(char **environ_, const char *name) {
    size_t length = strlen(name);
    for (; *environ_; environ_++) {
        if (strncmp(*environ_, name, length) || (*environ_)[length] != '=') continue;
        char *renamed = malloc(sizeof prefix + strlen(*environ_));
        if (renamed) *environ_ = strcat(strcpy(renamed, prefix), *environ_);
    }
}

static void show_again(char **environ_) {
    for (; *environ_; environ_++)
        if (!strncmp(*environ_, prefix, sizeof prefix - 1)) *environ_ += sizeof prefix - 1;
}

static int is_set(const char *name) {
    const char *value = getenv(name);
    return value && *value;
}

static int has_job(char **argv) {
    while (*argv && strcmp(*argv, "--")) argv++;
    return *argv && argv[1];
}

static int can_map(size_t size, int protection) {
    void *block = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block != MAP_FAILED && !munmap(block, size);
}

/* Whether there is what an interpreter needs for its start: it ends with a code of its own without that. */
static int can_start_python(void) {
    int first = fcntl(2, F_DUPFD_CLOEXEC, 3), second = fcntl(2, F_DUPFD_CLOEXEC, 3);
    if (first < 0 && errno == EBADF) first = second = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int is_enough = second >= 0 && can_map(DATA_BYTES, PROT_READ | PROT_WRITE) && can_map(ADDRESS_BYTES, PROT_NONE);
    int error = errno;
    if (first >= 0) close(first);
    if (second >= 0 && second != first) close(second);
    errno = error;
    return is_enough;
}

/* The signals that Python ignores at its start: it cannot tell any more what they were before. */
static void note_ignored(void) {
    static const int signums[] = {SIGPIPE, SIGXFSZ};
    for (size_t i = 0; i < sizeof signums / sizeof *signums; i++) {
        struct sigaction action;
        if (sigaction(signums[i], NULL, &action) || action.sa_handler != SIG_IGN) continue;
        size_t length = strlen(ignored);
        snprintf(ignored + length, sizeof ignored - length, "%d,", signums[i]);
    }
}

/* What stood in the way; the job is run without us where there is one. */
static int run_unrecorded(char **argv) {
    const char *reason = strerror(errno);
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
    while (*argv && strcmp(*argv, "--")) argv++;
    if (!*argv || !argv[1]) {
        dprintf(2, "sentinel-collector: cannot start Python for %s: %s\n", script, reason);
        return 1;
    }
    dprintf(2, "sentinel-collector: cannot start Python for %s: %s; the job runs and is not recorded\n", script, reason);
    argv++;
    execvp(argv[0], argv);
    dprintf(2, "sentinel-collector: %s: %s\n", argv[0], strerror(errno));
    return errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
}

int main(int argc, char **argv, char **envp) {
    ssize_t length = readlink("/proc/self/exe", script, MAX_PATH - 1);
    if (length < 0) return run_unrecorded(argv);
    memcpy(script + length, ".py", 4);
    char *python = interpreter();
    char **words = calloc((size_t)argc + FLAGS + 2, sizeof *words);
    if (!python || !words || (has_job(argv) && !can_start_python())) return run_unrecorded(argv);
    char **next = words;
    *next++ = python;
    *next++ = "-E";
    *next++ = "-P";
    *next++ = "-S";
    /* The two that say where Python may look and write. */
    if (is_set("PYTHONNOUSERSITE")) *next++ = "-s";
    if (is_set("PYTHONDONTWRITEBYTECODE")) *next++ = "-B";
    /* Here a sub-reaper costs nothing; in Python, it is an import of ctypes before the job's start. */
    if (has_job(argv) && !prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) {
        *next++ = "-X";
        *next++ = "sentinel-subreaper";
    }
    note_ignored();
    *next++ = "-X";
    *next++ = ignored;
    *next++ = script;
    for (char **one = argv + (argc > 0); *one; one++) *next++ = *one;
    hide(envp, "PYTHONEXECUTABLE");
    hide(envp, "__PYVENV_LAUNCHER__");
    execve(python, words, envp);
    show_again(envp);
    return run_unrecorded(argv);
}
