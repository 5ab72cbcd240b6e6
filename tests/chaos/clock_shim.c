/* Sets the wall clock of one process wrong: preloaded, it adds an offset to what the C library says the time is.
 *
 * The file that CHAOS_CLOCK names is shared with whoever turns the clock: the offset in nanoseconds, and how often
 * the time was read while it was not zero. The monotonic clock is left alone, as it is when a machine's clock is set.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct turned { _Atomic int64_t offset_ns; _Atomic uint64_t reads; };
static struct turned *turned;

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("CHAOS_CLOCK");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *found = mmap(NULL, sizeof *turned, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED)
        turned = found;
}

int clock_gettime(clockid_t id, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, id, at);
    if (failed || !turned || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t offset_ns = turned->offset_ns;
    if (!offset_ns)
        return 0;
    turned->reads++;
    int64_t total_ns = at->tv_sec * INT64_C(1000000000) + at->tv_nsec + offset_ns;
    at->tv_sec = total_ns / INT64_C(1000000000);
    at->tv_nsec = total_ns % INT64_C(1000000000);
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
