#include "launcher/hosts.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "core/error.h"

static const char name_characters[] =
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

void tsr_hosts_free(struct tsr_hosts *h) {
    free(h->items);
    *h = (struct tsr_hosts){0};
}

static int add(struct tsr_hosts *h, const char *name, size_t n, int64_t slots) {
    if (n == 0 || n >= TSR_HOST_NAME || name[0] == '-' || strspn(name, name_characters) < n)
        return tsr_fail(TSR_EUSAGE, "expected a host name, found \"%.*s\"",
                        (int)(n < 100 ? n : 100), name);
    if (h->n == TSR_MAX_HOSTS)
        return tsr_fail(TSR_EUSAGE, "more than %d hosts", TSR_MAX_HOSTS);
    for (int i = 0; i < h->n; i++)
        if (strlen(h->items[i].name) == n && memcmp(h->items[i].name, name, n) == 0)
            return tsr_fail(TSR_EUSAGE, "host %.*s is named twice", (int)n, name);
    struct tsr_host *items = h->items;
    if ((h->n & (h->n - 1)) == 0) // room for the next power of two
        items = realloc(items, (size_t)(h->n ? 2 * h->n : 1) * sizeof *items);
    if (!items)
        return tsr_fail(TSR_ENOMEM, "no memory for a list of hosts");
    h->items = items;
    items[h->n] = (struct tsr_host){.slots = slots};
    memcpy(items[h->n++].name, name, n);
    return 0;
}

// A whole number of 1 to TSR_MAX_SLOTS that is all of the text; 0 when it isn't one.
static int64_t slots_of(const char *text, size_t n) {
    int64_t v = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 0;
        v = 10 * v + (text[i] - '0');
        if (v > TSR_MAX_SLOTS)
            return 0;
    }
    return v;
}

int tsr_hosts_parse(struct tsr_hosts *h, const char *text) {
    int rc = 0;
    *h = (struct tsr_hosts){0};
    for (const char *at = text; rc == 0;) {
        size_t n = strcspn(at, ","), name = 0;
        while (name < n && at[name] != ':')
            name++;
        int64_t slots = name < n ? slots_of(at + name + 1, n - name - 1) : 1;
        if (n == 0)
            rc = tsr_fail(TSR_EUSAGE, "expected hosts as h1:8,h2:8, found \"%.100s\"", text);
        else if (slots == 0)
            rc = tsr_fail(TSR_EUSAGE, "expected a number of ranks of 1 to %d, found \"%.*s\"",
                          TSR_MAX_SLOTS, (int)(n < 100 ? n : 100), at);
        else
            rc = add(h, at, name, slots);
        if (!at[n])
            break;
        at += n + 1;
    }
    if (rc < 0)
        tsr_hosts_free(h);
    return rc;
}

static int malformed(const char *what) {
    return tsr_fail(TSR_EUSAGE, "%s in a Slurm node list", what);
}

// One pattern ("r[1-2]n[01-03]") with its first `n` characters of a name already spelled out in
// `name`. Expands the brackets from left to right.
static int expand(struct tsr_hosts *h, char name[static TSR_HOST_NAME], size_t n, const char *rest,
                  const char *end);

static int expand_range(struct tsr_hosts *h, char name[static TSR_HOST_NAME], size_t n,
                        const char *range, size_t n_range, const char *rest, const char *end) {
    size_t width = strspn(range, "0123456789");
    const char *last = range;
    size_t n_last = n_range;
    if (width < n_range && range[width] == '-') {
        last = range + width + 1;
        n_last = n_range - width - 1;
    } else if (width != n_range) {
        return malformed("expected a number or a range");
    }
    if (width == 0 || width > 9 || n_last == 0 || n_last > 9 ||
        strspn(last, "0123456789") < n_last || n + 9 >= TSR_HOST_NAME)
        return malformed("expected a number or a range");
    long from = strtol(range, NULL, 10), to = strtol(last, NULL, 10);
    if (to < from)
        return malformed("a range that goes down");
    for (long i = from; i <= to; i++) {
        int k = snprintf(name + n, TSR_HOST_NAME - n, "%0*ld", (int)width, i);
        TSR_TRY(expand(h, name, n + (size_t)k, rest, end));
    }
    return 0;
}

static int expand(struct tsr_hosts *h, char name[static TSR_HOST_NAME], size_t n, const char *rest,
                  const char *end) {
    while (rest < end && *rest != '[') {
        if (n + 1 >= TSR_HOST_NAME)
            return malformed("a name that is too long");
        name[n++] = *rest++;
    }
    if (rest == end)
        return add(h, name, n, 1);
    const char *close = memchr(rest, ']', (size_t)(end - rest));
    if (!close)
        return malformed("a bracket that isn't closed");
    for (const char *at = rest + 1;;) {
        size_t k = strcspn(at, ",]");
        TSR_TRY(expand_range(h, name, n, at, k, close + 1, end));
        at += k;
        if (at == close)
            return 0;
        at++;
    }
}

int tsr_hosts_parse_slurm(struct tsr_hosts *h, const char *nodelist) {
    char name[TSR_HOST_NAME];
    int rc = 0;
    *h = (struct tsr_hosts){0};
    for (const char *at = nodelist, *end; rc == 0; at = end + 1) {
        bool inside = false;
        for (end = at; *end && (inside || *end != ','); end++)
            inside = *end == '[' || (inside && *end != ']');
        rc = expand(h, name, 0, at, end);
        if (!*end)
            break;
    }
    if (rc < 0)
        tsr_hosts_free(h);
    return rc;
}

int tsr_hosts_slurm_slots(struct tsr_hosts *h, const char *tasks_per_node) {
    const char *at = tasks_per_node;
    int i = 0;
    for (;;) {
        size_t n = strcspn(at, ",("), n_repeat = 0;
        int64_t slots = slots_of(at, n), repeat = 1;
        at += n;
        if (strncmp(at, "(x", 2) == 0) {
            n_repeat = strcspn(at + 2, ")");
            repeat = at[2 + n_repeat] == ')' ? slots_of(at + 2, n_repeat) : 0;
            at += repeat ? n_repeat + 3 : 0;
        }
        if (slots == 0 || repeat == 0 || repeat > h->n - i || (*at && *at != ','))
            break;
        while (repeat-- > 0)
            h->items[i++].slots = slots;
        if (!*at && i == h->n)
            return 0;
        if (!*at)
            break;
        at++;
    }
    return tsr_fail(
        TSR_EUSAGE,
        "SLURM_TASKS_PER_NODE: expected numbers of tasks for %d nodes, found \"%.100s\"", h->n,
        tasks_per_node);
}

// `scontrol show hostnames` knows the node names of this cluster; one a line.
static int ask_scontrol(struct tsr_hosts *h) {
    char line[TSR_HOST_NAME + 2];
    FILE *f = popen("scontrol show hostnames 2>/dev/null", "r"); // reads SLURM_JOB_NODELIST itself
    int rc = f ? 0 : TSR_EIO;
    *h = (struct tsr_hosts){0};
    while (rc == 0 && fgets(line, sizeof line, f))
        rc = add(h, line, strcspn(line, "\n"), 1);
    if (f && pclose(f) != 0)
        rc = TSR_EIO;
    if (rc < 0 || h->n == 0) {
        tsr_hosts_free(h);
        return TSR_EIO;
    }
    return 0;
}

int tsr_hosts_from_slurm(struct tsr_hosts *h) {
    const char *list = getenv("SLURM_JOB_NODELIST"), *tasks = getenv("SLURM_TASKS_PER_NODE");
    *h = (struct tsr_hosts){0};
    if (!getenv("SLURM_JOB_ID") || !list || !list[0])
        return 0;
    if (ask_scontrol(h) < 0 && tsr_hosts_parse_slurm(h, list) < 0)
        return tsr_fail_prefix(TSR_EUSAGE, "SLURM_JOB_NODELIST=%.200s", list);
    int rc = 0;
    if (h->n == 1)
        tsr_hosts_free(h); // mpirun's own default is right
    else if (tasks && tasks[0])
        rc = tsr_hosts_slurm_slots(h, tasks);
    if (rc < 0)
        tsr_hosts_free(h);
    return rc;
}

int64_t tsr_hosts_slots(const struct tsr_hosts *h) {
    int64_t sum = 0;
    for (int i = 0; i < h->n; i++)
        sum += h->items[i].slots;
    return sum;
}

int tsr_hosts_format(const struct tsr_hosts *h, const bool *skip, struct tsr_buf *out) {
    const char *comma = "";
    for (int i = 0; i < h->n; i++) {
        if (skip && skip[i])
            continue;
        TSR_TRY(tsr_buf_printf(out, "%s%s:%lld", comma, h->items[i].name,
                               (long long)h->items[i].slots));
        comma = ",";
    }
    return 0;
}

// A number that a socket can be bound to is an address of this machine.
static bool is_own_address(const char *name) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, name, &at.sin_addr) != 1)
        return false;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool own = fd >= 0 && bind(fd, (const struct sockaddr *)&at, sizeof at) == 0;
    if (fd >= 0)
        close(fd);
    return own;
}

bool tsr_host_is_here(const char *name) {
    char own[TSR_HOST_NAME];
    if (strcmp(name, "localhost") == 0 || is_own_address(name))
        return true;
    if (gethostname(own, sizeof own) < 0)
        return false;
    own[sizeof own - 1] = 0;
    if (strcmp(own, name) == 0)
        return true;
    size_t n = strcspn(name, "."), m = strcspn(own, ".");
    // Either one may lack the domain; an address has no short form.
    return n == m && memcmp(name, own, n) == 0 && (!name[n] || !own[m]) &&
           strspn(name, "0123456789.") < strlen(name);
}

bool tsr_hosts_are_here(const struct tsr_hosts *h) {
    for (int i = 0; i < h->n; i++)
        if (!tsr_host_is_here(h->items[i].name))
            return false;
    return true;
}
