// Other hosts of a run: whether they answer, and what an earlier incarnation left on them.
#include "launcher/supervise_private.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/supervise_spawn.h"

enum { AT_ONCE = 64 };
#define PROBE_S 8.0

// ---- this machine's address

// 0, or a code of getaddrinfo; the caller frees *to.
static int look_up(const char *name, struct addrinfo **to) {
    const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
    return getaddrinfo(name, "9", &hints, to);
}

int tsr_super_check_names(const struct tsr_super *s) {
    for (int i = 0; i < s->hosts.n; i++) {
        const char *name = s->hosts.items[i].name;
        struct addrinfo *to;
        if (tsr_host_is_here(name))
            continue;
        int rc = look_up(name, &to);
        if (rc == 0)
            freeaddrinfo(to);
        // Where the resolver is away, or we lack something, the name may be good.
        if (rc == EAI_NONAME || rc == EAI_NODATA)
            return tsr_fail(TSR_EUSAGE, "host %s: %s", name, gai_strerror(rc));
    }
    return 0;
}

static int address_towards(const char *name, char out[static TSR_HOST_MAX]) {
    struct addrinfo *to;
    struct sockaddr_storage own;
    socklen_t n = sizeof own;
    int rc = look_up(name, &to);
    if (rc != 0)
        return tsr_fail(TSR_EUSAGE, "host %s: %s", name, gai_strerror(rc));
    int fd = socket(to->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    // Nothing is sent: connecting a datagram socket only asks which way it would go.
    rc = fd >= 0 && connect(fd, to->ai_addr, to->ai_addrlen) == 0 &&
                 getsockname(fd, (struct sockaddr *)&own, &n) == 0 &&
                 getnameinfo((struct sockaddr *)&own, n, out, TSR_HOST_MAX, NULL, 0,
                             NI_NUMERICHOST) == 0
             ? 0
             : tsr_fail(TSR_EPEER, "host %s: there is no route to it", name);
    if (fd >= 0)
        close(fd);
    freeaddrinfo(to);
    return rc;
}

int tsr_super_own_address(struct tsr_super *s, char out[static TSR_HOST_MAX]) {
    int rc = 0;
    snprintf(out, TSR_HOST_MAX, "127.0.0.1");
    for (int i = 0; i < s->hosts.n; i++) {
        const char *name = s->hosts.items[i].name;
        if (s->host_lost[i] || tsr_host_is_here(name))
            continue;
        rc = address_towards(name, out);
        if (rc == 0)
            break;
    }
    return rc;
}

// ---- probes

// The command that mpirun reaches other hosts with: "ssh -p 22", the first of alternatives.
static int agent_words(struct tsr_strings *argv) {
    const char *agent = getenv("OMPI_MCA_plm_rsh_agent");
    if (!agent || !agent[0]) {
        static const char *const ssh[] = {"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"};
        for (size_t i = 0; i < sizeof ssh / sizeof *ssh; i++)
            TSR_TRY(tsr_strings_add(argv, "%s", ssh[i]));
        return 0;
    }
    size_t end = strcspn(agent, ":");
    for (size_t at = 0; at < end;) {
        size_t n = strcspn(agent + at, " :");
        if (n > 0)
            TSR_TRY(tsr_strings_add(argv, "%.*s", (int)n, agent + at));
        at += n + 1;
    }
    return 0;
}

// Ends what has this run's token in its environment: no incarnation runs now, so it is an orphan.
static int probe_command(const struct tsr_super *s, const char *host, struct tsr_strings *argv) {
    TSR_TRY(agent_words(argv));
    TSR_TRY(tsr_strings_add(argv, "%s", host));
    return tsr_strings_add(argv,
                           "sh -c 'for f in `grep -lzsx TESSERA_RUN=%s /proc/[0-9]*/environ`; do "
                           "p=${f#/proc/}; kill -9 ${p%%/environ}; done; exit 0'",
                           s->token);
}

static int start_probe(struct tsr_super *s, const char *host, int null, struct tsr_process *c) {
    struct tsr_strings argv = {0};
    int rc = probe_command(s, host, &argv);
    struct tsr_spawn child = {
        .argv = (const char *const *)argv.items, .in = null, .out = null, .err = null};
    *c = (struct tsr_process){0};
    if (rc == 0)
        rc = tsr_spawn(&child, &c->pid);
    tsr_strings_free(&argv);
    return rc;
}

static bool probes_ended(struct tsr_super *s) {
    for (int i = 0; i < s->n_probes; i++)
        if (s->probes[i].pid > 0 && !s->probes[i].ended)
            return tsr_super_must_end(s);
    return true;
}

// Probes hosts [from, to), those of this machine left out.
static int probe_some(struct tsr_super *s, int from, int to, int null) {
    int rc = 0;
    s->n_probes = to - from;
    memset(s->probes, 0, (size_t)s->n_probes * sizeof *s->probes);
    for (int i = from; i < to && rc == 0; i++)
        if (!tsr_host_is_here(s->hosts.items[i].name))
            rc = start_probe(s, s->hosts.items[i].name, null, &s->probes[i - from]);
    tsr_super_wait(s, probes_ended, PROBE_S);
    for (int i = from; i < to; i++) {
        const struct tsr_process *c = &s->probes[i - from];
        bool lost = c->pid > 0 && (!c->ended || tsr_process_code(c) != 0);
        if (c->pid > 0 && !c->ended)
            kill(c->pid, SIGKILL);
        if (lost && !s->host_lost[i])
            tsr_warn("host %s does not answer", s->hosts.items[i].name);
        if (!lost && s->host_lost[i])
            tsr_info("host %s answers again", s->hosts.items[i].name);
        s->host_lost[i] = lost;
    }
    s->n_probes = 0;
    return rc;
}

int tsr_super_probe_hosts(struct tsr_super *s) {
    if (s->hosts.n == 0 || (getenv("SLURM_JOB_ID") && !getenv("OMPI_MCA_plm_rsh_agent")))
        return 0; // under Slurm mpirun starts its daemons by srun
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), rc = 0;
    if (null < 0)
        return tsr_fail(TSR_EIO, "cannot open /dev/null");
    s->probes = calloc(AT_ONCE, sizeof *s->probes);
    if (!s->probes)
        rc = tsr_fail(TSR_ENOMEM, "no memory to ask the hosts");
    for (int i = 0; i < s->hosts.n && rc == 0; i += AT_ONCE)
        rc = probe_some(s, i, i + AT_ONCE < s->hosts.n ? i + AT_ONCE : s->hosts.n, null);
    free(s->probes);
    s->probes = NULL;
    close(null);
    return rc;
}
