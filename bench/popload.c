/*
 * popload - POP3 load generator and verifier (epoll, one thread, no dependencies but OpenSSL).
 *
 *   popload sessions -c 32 -n 5000 -r 1   whole dialogues: greeting USER PASS STAT UIDL RETR QUIT
 *   popload drain -d 64                   one session (or -c of them) downloads every message
 *   popload list -n 10                    login STAT LIST UIDL QUIT, the latency of each step
 *   popload idle -c 1000 -T 5             opens sessions, logs in, holds them, prints memory
 *   popload sum DIR                       what a correct server sends for Maildir DIR, stored with
 *                                         LF or CRLF: "count octets checksum"
 *
 *   -H HOST -p PORT -t     where; -t: implicit TLS
 *   -u USER -U N -w WORD   who (USER may hold %d, for one of N), and the password
 *   -c N -n N -r N         connections at once, sessions in all, RETRs per session
 *   -d N -D                commands on their way in a drain; DELE after each RETR
 *   -T SECONDS             the limit; in idle how long to hold
 *   -P PID[,PID]           of servers, whose processor time and memory are printed, with all children
 *   -x SUM, -q             what a drain must add up to; -q: do not add up (framing is still checked)
 *   -b OCTETS              per recv() (262144)
 *   -R                     resume TLS sessions
 *   -a N                   spread the source address over 127.0.1.1 and so on
 *   -L LABEL               for the line that is written
 *
 * Writes one line of key=value pairs; exit status 0 only if every check held: status lines, STAT
 * as LIST adds up, octets of each RETR as LIST says, CRC-32C of all octets after un-dot-stuffing
 * (added up by message, so that their order does not matter).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---------- options ---------- */
static const char *o_host = "127.0.0.1", *o_user = "u%d", *o_pass = "secret", *o_label = "-",
                  *o_pids = NULL, *o_expect = NULL;
static int o_port = 31110, o_tls = 0, o_users = 1, o_conc = 1, o_retr = 1, o_depth = 1, o_sum = 1,
           o_dele = 0, o_resume = 0, o_src = 0;
static long o_total = 1;
static double o_time = 60;
static size_t o_buf = 262144;
enum { M_SESSIONS, M_DRAIN, M_LIST, M_IDLE } mode;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static void die(const char *f, ...) {
    va_list a;
    va_start(a, f);
    vfprintf(stderr, f, a);
    va_end(a);
    fputc('\n', stderr);
    exit(2);
}

/* ---------- CRC-32C ---------- */
__attribute__((target("sse4.2"))) static uint32_t crc(uint32_t c, const char *p, size_t n) {
    uint64_t v = c;
    uint64_t w;
    while (n >= 8) {
        memcpy(&w, p, 8);
        v = _mm_crc32_u64(v, w);
        p += 8;
        n -= 8;
    }
    while (n--)
        v = _mm_crc32_u8((uint32_t)v, (uint8_t)*p++);
    return (uint32_t)v;
}
/* first i in [p,e-1) with p[i]=='\n' && p[i+1]=='.', else NULL */
__attribute__((target("avx2"))) static const char *find_nldot(const char *p, const char *e) {
    const __m256i nl = _mm256_set1_epi8('\n'), dt = _mm256_set1_epi8('.');
    while (e - p >= 33) {
        __m256i a = _mm256_cmpeq_epi8(_mm256_loadu_si256((const void *)p), nl);
        __m256i b = _mm256_cmpeq_epi8(_mm256_loadu_si256((const void *)(p + 1)), dt);
        unsigned m = (unsigned)_mm256_movemask_epi8(_mm256_and_si256(a, b));
        if (m)
            return p + __builtin_ctz(m);
        p += 32;
    }
    for (; e - p >= 2; p++)
        if (p[0] == '\n' && p[1] == '.')
            return p;
    return NULL;
}

/* ---------- latency samples ---------- */
typedef struct {
    float *v;
    size_t n, cap;
} lat_t;
static void lat_add(lat_t *l, double s) {
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 4096;
        l->v = realloc(l->v, l->cap * sizeof(float));
    }
    l->v[l->n++] = (float)s;
}
static int fcmp(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}
static void lat_print(const char *name, lat_t *l) {
    if (!l->n)
        return;
    qsort(l->v, l->n, sizeof(float), fcmp);
    printf(" %s_ms=p50:%.3f,p95:%.3f,p99:%.3f,max:%.3f", name, l->v[l->n / 2] * 1e3,
           l->v[(size_t)(l->n * 0.95)] * 1e3, l->v[(size_t)(l->n * 0.99)] * 1e3,
           l->v[l->n - 1] * 1e3);
}
static lat_t L_sess, L_conn, L_auth, L_stat, L_list, L_uidl, L_retr, L_quit;

/* ---------- server process tree: CPU seconds and memory ---------- */
typedef struct {
    double cpu;
    long rss_kb, pss_kb, priv_kb;
    int procs;
} usage_t;
static int isroot(int pid) {
    char b[256];
    snprintf(b, sizeof b, "%s", o_pids);
    for (char *s = strtok(b, ","); s; s = strtok(NULL, ","))
        if (atoi(s) == pid)
            return 1;
    return 0;
}
/* seconds of all its threads, in ns; utime and stime of /proc/PID/stat are ticks of 10 ms */
static double process_cpu(int pid) {
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        return 0;
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static usage_t usage(int mem) {
    usage_t u = {0};
    if (!o_pids)
        return u;
    static struct {
        int pid, ppid, in;
        double cpu;
    } P[65536];
    int n = 0;
    DIR *d = opendir("/proc");
    struct dirent *e;
    long hz = sysconf(_SC_CLK_TCK);
    while ((e = readdir(d)) && n < 65536) {
        int pid = atoi(e->d_name);
        if (pid <= 0)
            continue;
        char f[64], b[1024];
        snprintf(f, sizeof f, "/proc/%d/stat", pid);
        int fd = open(f, O_RDONLY);
        if (fd < 0)
            continue;
        ssize_t k = read(fd, b, sizeof b - 1);
        close(fd);
        if (k <= 0)
            continue;
        b[k] = 0;
        char *r = strrchr(b, ')');
        if (!r)
            continue;
        char st;
        int pp;
        long cut, cst;
        if (sscanf(r + 2, "%c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %ld %ld", &st, &pp,
                   &cut, &cst) != 4)
            continue;
        P[n].pid = pid;
        P[n].ppid = pp;
        P[n].in = isroot(pid);
        P[n].cpu = process_cpu(pid) + (double)(cut + cst) / hz;
        n++;
    }
    closedir(d);
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < n; i++)
            if (!P[i].in)
                for (int j = 0; j < n; j++)
                    if (P[j].in && P[j].pid == P[i].ppid) {
                        P[i].in = again = 1;
                        break;
                    }
    }
    for (int i = 0; i < n; i++)
        if (P[i].in) {
            u.procs++;
            u.cpu += P[i].cpu;
            if (!mem)
                continue;
            char f[64], b[4096], *q;
            snprintf(f, sizeof f, "/proc/%d/smaps_rollup", P[i].pid);
            int fd = open(f, O_RDONLY);
            if (fd < 0)
                continue;
            ssize_t k = read(fd, b, sizeof b - 1);
            close(fd);
            if (k <= 0)
                continue;
            b[k] = 0;
            if ((q = strstr(b, "\nRss:")))
                u.rss_kb += atol(q + 5);
            if ((q = strstr(b, "\nPss:")))
                u.pss_kb += atol(q + 5);
            if ((q = strstr(b, "\nPrivate_Clean:")))
                u.priv_kb += atol(q + 15);
            if ((q = strstr(b, "\nPrivate_Dirty:")))
                u.priv_kb += atol(q + 15);
        }
    return u;
}

/* ---------- connection ---------- */
enum {
    S_CONNECT,
    S_TLS,
    S_GREET,
    S_USER,
    S_PASS,
    S_STAT,
    S_LIST,
    S_UIDL,
    S_RETR,
    S_QUIT,
    S_EOF,
    S_IDLE,
    S_DEAD
};
typedef struct {
    int fd, st, user;
    SSL *ssl;
    double t0, tc;
    char *buf;
    size_t len, cap;
    int multi, bol;
    uint32_t c;
    long octets, said;
    long nmsg, statbytes;
    long *size;
    long sent, got;
    int dele_out;
    char *out;
    size_t olen, ocap;
} conn_t;
static conn_t *C;
static int ep;
static SSL_CTX *ctx;
static SSL_SESSION *saved;
static long started, done, failed, msgs, bytes;
static uint64_t checksum;
static int active, ready;
static double tend;
static double t_drain0;

static void fail(conn_t *k, const char *f, ...) {
    if (failed < 10) {
        char m[256];
        va_list a;
        va_start(a, f);
        vsnprintf(m, sizeof m, f, a);
        va_end(a);
        fprintf(stderr, "popload: user %d state %d: %s: %.80s\n", k->user, k->st, m,
                k->buf ? k->buf : "");
    }
    failed++;
    k->st = S_DEAD;
}
static void ev(conn_t *k, uint32_t e, int op) {
    struct epoll_event x = {.events = e, .data.ptr = k};
    if (epoll_ctl(ep, op, k->fd, &x) < 0)
        die("epoll_ctl: %s", strerror(errno));
}
static void flush(conn_t *k) {
    while (k->olen) {
        ssize_t n;
        if (k->ssl) {
            n = SSL_write(k->ssl, k->out, (int)k->olen);
            if (n <= 0)
                n = -1;
        } else
            n = send(k->fd, k->out, k->olen, MSG_NOSIGNAL);
        if (n < 0) {
            if (k->ssl || errno == EAGAIN) {
                ev(k, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
                return;
            }
            fail(k, "send: %s", strerror(errno));
            return;
        }
        memmove(k->out, k->out + n, k->olen - n);
        k->olen -= n;
    }
}
static void put(conn_t *k, const char *f, ...) {
    if (k->ocap - k->olen < 512) {
        k->ocap = k->ocap ? k->ocap * 2 : 1024;
        k->out = realloc(k->out, k->ocap);
    }
    va_list a;
    va_start(a, f);
    k->olen += vsnprintf(k->out + k->olen, k->ocap - k->olen, f, a);
    va_end(a);
}
static void cmd(conn_t *k, int st, const char *f, ...) {
    k->st = st;
    k->tc = now();
    char b[400];
    va_list a;
    va_start(a, f);
    vsnprintf(b, sizeof b, f, a);
    va_end(a);
    put(k, "%s\r\n", b);
    flush(k);
}

static void start(conn_t *k) {
    k->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    setsockopt(k->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (o_src) {
        struct sockaddr_in s = {.sin_family = AF_INET};
        char a[32];
        snprintf(a, sizeof a, "127.0.1.%d", 1 + (int)(started % o_src));
        inet_pton(AF_INET, a, &s.sin_addr);
        setsockopt(k->fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
        if (bind(k->fd, (void *)&s, sizeof s) < 0)
            die("bind: %s", strerror(errno));
    }
    struct sockaddr_in s = {.sin_family = AF_INET, .sin_port = htons(o_port)};
    inet_pton(AF_INET, o_host, &s.sin_addr);
    k->user = (int)(started++ % o_users);
    k->len = 0;
    k->multi = 0;
    k->bol = 1;
    k->sent = k->got = 0;
    k->nmsg = k->statbytes = 0;
    k->olen = 0;
    k->dele_out = 0;
    k->octets = 0;
    k->c = ~0u;
    if (!k->buf) {
        k->cap = mode == M_DRAIN || mode == M_LIST ? o_buf : 16384;
        k->buf = malloc(k->cap + 1);
    }
    k->t0 = now();
    k->st = S_CONNECT;
    active++;
    if (connect(k->fd, (void *)&s, sizeof s) < 0 && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    ev(k, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}
static void finish(conn_t *k) {
    if (k->ssl) {
        if (o_resume && !saved && k->st != S_DEAD)
            saved = SSL_get1_session(k->ssl);
        SSL_free(k->ssl);
        k->ssl = NULL;
    }
    close(k->fd);
    k->fd = -1;
    active--;
    if (k->st != S_DEAD)
        done++;
    free(k->size);
    k->size = NULL;
    k->st = S_DEAD;
    if (started < o_total && now() < tend)
        start(k);
}
static void fill(conn_t *k) { /* keep the pipeline full */
    int dp = mode == M_DRAIN ? o_depth : 1;
    long n = mode == M_DRAIN ? k->nmsg : (o_retr < k->nmsg ? o_retr : k->nmsg);
    if (k->got >= n && !k->dele_out) {
        cmd(k, S_QUIT, "QUIT");
        return;
    }
    /* refill in half-depth batches, so that commands travel together as a real client's would */
    if (k->sent - k->got <= dp / 2)
        while (k->sent < n && k->sent - k->got < dp) {
            k->sent++;
            put(k, "RETR %ld\r\n", k->sent);
            if (o_dele) {
                put(k, "DELE %ld\r\n", k->sent);
            }
        }
    k->st = S_RETR;
    k->tc = now();
    flush(k);
}
static long num(const char *p) {
    while (*p && *p != '\r' && (*p < '0' || *p > '9'))
        p++;
    return *p >= '0' && *p <= '9' ? atol(p) : -1;
}

/* a complete reply was read */
static void reply(conn_t *k, const char *line) {
    double t = now();
    switch (k->st) {
    case S_GREET:
        lat_add(&L_conn, t - k->t0);
        {
            char u[200];
            snprintf(u, sizeof u, o_user, k->user);
            cmd(k, S_USER, "USER %s", u);
        }
        break;
    case S_USER:
        cmd(k, S_PASS, "PASS %s", o_pass);
        break;
    case S_PASS:
        lat_add(&L_auth, t - k->tc);
        if (mode == M_IDLE) {
            k->st = S_IDLE;
            ready++;
        } else
            cmd(k, S_STAT, "STAT");
        break;
    case S_STAT:
        lat_add(&L_stat, t - k->tc);
        sscanf(line, "+OK %ld %ld", &k->nmsg, &k->statbytes);
        if (mode == M_SESSIONS)
            cmd(k, S_UIDL, "UIDL");
        else {
            k->size = calloc(k->nmsg + 2, sizeof(long));
            k->octets = 0;
            k->got = 0;
            cmd(k, S_LIST, "LIST");
        }
        break;
    case S_LIST: {
        lat_add(&L_list, t - k->tc);
        long s = 0;
        for (long i = 1; i <= k->nmsg; i++)
            s += k->size[i];
        if (k->got != k->nmsg || s != k->statbytes) {
            fail(k, "LIST %ld/%ld disagrees with STAT %ld/%ld", k->got, s, k->nmsg, k->statbytes);
            return;
        }
        k->got = 0;
        if (mode == M_LIST)
            cmd(k, S_UIDL, "UIDL");
        else {
            t_drain0 = t;
            fill(k);
        }
        break;
    }
    case S_UIDL:
        lat_add(&L_uidl, t - k->tc);
        if (k->got != k->nmsg) {
            fail(k, "UIDL gave %ld of %ld", k->got, k->nmsg);
            return;
        }
        k->got = 0;
        if (mode == M_LIST)
            cmd(k, S_QUIT, "QUIT");
        else
            fill(k);
        break;
    case S_RETR:
        if (k->dele_out) {
            k->dele_out = 0;
            fill(k);
            break;
        }
        lat_add(&L_retr, t - k->tc);
        k->got++;
        msgs++;
        bytes += k->octets;
        if (o_sum)
            checksum += ~k->c;
        if (k->said >= 0 && k->said != k->octets) {
            fail(k, "message %ld: +OK says %ld octets, %ld came", k->got, k->said, k->octets);
            return;
        }
        if (k->size && k->size[k->got] != k->octets) {
            fail(k, "message %ld: LIST says %ld octets, %ld came", k->got, k->size[k->got],
                 k->octets);
            return;
        }
        if (o_dele)
            k->dele_out = 1;
        else
            fill(k);
        break;
    case S_QUIT:
        lat_add(&L_quit, t - k->tc);
        lat_add(&L_sess, t - k->t0);
        k->st = S_EOF;
        break;
    }
}
static int is_multi(conn_t *k) {
    return k->st == S_LIST || k->st == S_UIDL || (k->st == S_RETR && !k->dele_out);
}

static void parse(conn_t *k) {
    char *p = k->buf, *e = k->buf + k->len;
    *e = 0;
    while (p < e && k->st != S_DEAD) {
        if (!k->multi) {
            char *nl = memchr(p, '\n', e - p);
            if (!nl)
                break;
            if (k->st == S_EOF || k->st == S_IDLE) {
                fail(k, "unexpected data");
                break;
            }
            if (p[0] != '+') {
                fail(k, "refused: %.*s", (int)(nl - p), p);
                break;
            }
            if (is_multi(k)) {
                k->multi = 1;
                k->bol = 1;
                k->octets = 0;
                k->c = ~0u;
                k->said = k->st == S_RETR ? num(p + 3) : -1;
                p = nl + 1;
                continue;
            }
            char line[128];
            size_t n = nl - p < 127 ? nl - p : 127;
            memcpy(line, p, n);
            line[n] = 0;
            p = nl + 1;
            reply(k, line);
        } else if (k->st == S_RETR) {
            if (k->bol && *p == '.') {
                if (e - p < 3 && (e - p < 2 || p[1] == '\r'))
                    break;
                if (p[1] == '\r' && p[2] == '\n') {
                    p += 3;
                    k->multi = 0;
                    reply(k, NULL);
                    continue;
                }
                p++;
                k->bol = 0;
                if (p == e)
                    break;
            }
            const char *q = find_nldot(p, e);
            size_t n = q ? (size_t)(q + 1 - p) : (size_t)(e - p);
            if (o_sum)
                k->c = crc(k->c, p, n);
            k->octets += n;
            p += n;
            k->bol = p[-1] == '\n';
        } else { /* LIST or UIDL: a line each */
            char *nl = memchr(p, '\n', e - p);
            if (!nl)
                break;
            if (p[0] == '.' && p[1] == '\r') {
                p = nl + 1;
                k->multi = 0;
                reply(k, NULL);
                continue;
            }
            k->got++;
            char *q;
            long id = strtol(p, &q, 10);
            if (id != k->got) {
                fail(k, "listing out of order: %ld after %ld", id, k->got);
                break;
            }
            if (k->st == S_LIST && k->size && id <= k->nmsg)
                k->size[id] = strtol(q, NULL, 10);
            p = nl + 1;
        }
    }
    k->len = e - p;
    if (k->len && p != k->buf)
        memmove(k->buf, p, k->len);
}
static void on_event(conn_t *k, uint32_t e) {
    if (k->st == S_CONNECT) {
        int err = 0;
        socklen_t l = sizeof err;
        getsockopt(k->fd, SOL_SOCKET, SO_ERROR, &err, &l);
        if (err) {
            fail(k, "connect: %s", strerror(err));
            finish(k);
            return;
        }
        if (!(e & EPOLLOUT))
            return;
        if (o_tls) {
            k->ssl = SSL_new(ctx);
            SSL_set_fd(k->ssl, k->fd);
            if (o_resume && saved)
                SSL_set_session(k->ssl, saved);
            SSL_set_connect_state(k->ssl);
            k->st = S_TLS;
        } else {
            k->st = S_GREET;
            ev(k, EPOLLIN, EPOLL_CTL_MOD);
            return;
        }
    }
    if (k->st == S_TLS) {
        int r = SSL_do_handshake(k->ssl);
        if (r == 1) {
            k->st = S_GREET;
            ev(k, EPOLLIN, EPOLL_CTL_MOD);
        } else {
            int x = SSL_get_error(k->ssl, r);
            if (x == SSL_ERROR_WANT_READ)
                ev(k, EPOLLIN, EPOLL_CTL_MOD);
            else if (x == SSL_ERROR_WANT_WRITE)
                ev(k, EPOLLOUT, EPOLL_CTL_MOD);
            else {
                fail(k, "TLS handshake: %s", ERR_error_string(ERR_get_error(), NULL));
                finish(k);
            }
            return;
        }
    }
    if (e & EPOLLOUT) {
        ev(k, EPOLLIN, EPOLL_CTL_MOD);
        flush(k);
    }
    for (;;) {
        ssize_t n;
        if (k->len == k->cap) {
            k->cap *= 2;
            k->buf = realloc(k->buf, k->cap + 1);
        }
        if (k->ssl) {
            ERR_clear_error();
            n = SSL_read(k->ssl, k->buf + k->len, (int)(k->cap - k->len));
            if (n <= 0) {
                int x = SSL_get_error(k->ssl, (int)n);
                if (x == SSL_ERROR_WANT_READ)
                    return;
                n = 0;
            }
        } else {
            n = recv(k->fd, k->buf + k->len, k->cap - k->len, 0);
            if (n < 0) {
                if (errno == EAGAIN || errno == EINTR)
                    return;
                n = 0;
            }
        }
        if (n == 0) {
            if (k->st != S_EOF && k->st != S_DEAD)
                fail(k, "server closed the connection");
            finish(k);
            return;
        }
        k->len += n;
        parse(k);
        if (k->st == S_DEAD) {
            finish(k);
            return;
        }
        if (!k->ssl)
            return; /* level-triggered; TLS must be read dry */
    }
}

static int sum_dir(const char *dir) {
    uint64_t total = 0;
    long n = 0, oct = 0;
    const char *subs[] = {"cur", "new"};
    for (int s = 0; s < 2; s++) {
        char d[4096];
        snprintf(d, sizeof d, "%s/%s", dir, subs[s]);
        DIR *h = opendir(d);
        struct dirent *e;
        if (!h)
            continue;
        while ((e = readdir(h))) {
            if (e->d_name[0] == '.')
                continue;
            char f[8192];
            snprintf(f, sizeof f, "%s/%s", d, e->d_name);
            int fd = open(f, O_RDONLY);
            struct stat st;
            fstat(fd, &st);
            char *b = malloc(st.st_size + 1), *p, *q;
            if (read(fd, b, st.st_size) != st.st_size)
                die("short read %s", f);
            close(fd);
            uint32_t c = ~0u;
            char *end = b + st.st_size;
            for (p = b; p < end; p = q) {
                q = memchr(p, '\n', end - p);
                if (!q) {
                    c = crc(c, p, end - p);
                    c = crc(c, "\r\n", 2);
                    oct += end - p + 2;
                    break;
                }
                if (q > b && q[-1] == '\r' && q > p) {
                    c = crc(c, p, q + 1 - p);
                    oct += q + 1 - p;
                } else {
                    c = crc(c, p, q - p);
                    c = crc(c, "\r\n", 2);
                    oct += q - p + 2;
                }
                q++;
            }
            total += ~c;
            n++;
            free(b);
        }
        closedir(h);
    }
    printf("%ld %ld %016lx\n", n, oct, (unsigned long)total);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2)
        die("usage: popload sessions|drain|list|idle|sum [options] (see the head of popload.c)");
    if (!strcmp(argv[1], "sum"))
        return sum_dir(argv[2]);
    mode = !strcmp(argv[1], "sessions") ? M_SESSIONS
           : !strcmp(argv[1], "drain")  ? M_DRAIN
           : !strcmp(argv[1], "list")   ? M_LIST
           : !strcmp(argv[1], "idle")   ? M_IDLE
                                        : (die("mode?"), 0);
    argv++;
    argc--;
    for (int o; (o = getopt(argc, argv, "H:p:tu:U:w:c:n:r:d:DT:P:x:qb:Ra:L:")) != -1;)
        switch (o) {
        case 'H':
            o_host = optarg;
            break;
        case 'p':
            o_port = atoi(optarg);
            break;
        case 't':
            o_tls = 1;
            break;
        case 'u':
            o_user = optarg;
            break;
        case 'U':
            o_users = atoi(optarg);
            break;
        case 'w':
            o_pass = optarg;
            break;
        case 'c':
            o_conc = atoi(optarg);
            break;
        case 'n':
            o_total = atol(optarg);
            break;
        case 'r':
            o_retr = atoi(optarg);
            break;
        case 'd':
            o_depth = atoi(optarg);
            break;
        case 'D':
            o_dele = 1;
            break;
        case 'T':
            o_time = atof(optarg);
            break;
        case 'P':
            o_pids = optarg;
            break;
        case 'x':
            o_expect = optarg;
            break;
        case 'q':
            o_sum = 0;
            break;
        case 'b':
            o_buf = strtoul(optarg, NULL, 10);
            break;
        case 'R':
            o_resume = 1;
            break;
        case 'a':
            o_src = atoi(optarg);
            break;
        case 'L':
            o_label = optarg;
            break;
        default:
            return 2;
        }
    if (o_total < o_conc)
        o_total = o_conc;
    struct rlimit rl = {65536, 65536};
    if (setrlimit(RLIMIT_NOFILE, &rl) < 0) {
        getrlimit(RLIMIT_NOFILE, &rl);
        rl.rlim_cur = rl.rlim_max;
        setrlimit(RLIMIT_NOFILE, &rl);
    }
    if (o_tls) {
        ctx = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_read_ahead(ctx, 1);
        SSL_CTX_set_default_read_buffer_len(ctx, 65536);
    }
    ep = epoll_create1(0);
    C = calloc(o_conc, sizeof *C);
    usage_t u0 = usage(mode == M_IDLE), u1;
    double t0 = now(), t1, mycpu;
    tend = t0 + (mode == M_IDLE ? 300 : o_time);
    struct rusage ru0, ru1;
    getrusage(RUSAGE_SELF, &ru0);
    int opened = 0;
    for (; opened < o_conc && (mode != M_IDLE || opened < 64); opened++)
        start(&C[opened]);
    double hold = 0;
    while (active) {
        struct epoll_event E[256];
        int n = epoll_wait(ep, E, 256, 100);
        for (int i = 0; i < n; i++)
            on_event(E[i].data.ptr, E[i].events);
        double t = now();
        if (mode == M_IDLE) {
            while (opened < o_conc && opened - ready < 64)
                start(&C[opened++]);
            if (ready >= o_conc && !hold)
                hold = t;
            if (hold && t - hold >= o_time)
                break;
            if (failed > 20)
                break;
        }
        if (t > tend + 30) {
            fprintf(stderr, "popload: time limit\n");
            failed++;
            break;
        }
    }
    t1 = now();
    getrusage(RUSAGE_SELF, &ru1);
    mycpu =
        (ru1.ru_utime.tv_sec - ru0.ru_utime.tv_sec + ru1.ru_stime.tv_sec - ru0.ru_stime.tv_sec) +
        1e-6 * (ru1.ru_utime.tv_usec - ru0.ru_utime.tv_usec + ru1.ru_stime.tv_usec -
                ru0.ru_stime.tv_usec);
    u1 = usage(mode == M_IDLE);
    double s = t1 - t0;
    int ok = failed == 0;
    printf("%s mode=%s ok=%ld failed=%ld secs=%.3f", o_label,
           (const char *[]){"sessions", "drain", "list", "idle"}[mode],
           mode == M_IDLE ? ready : done, failed, s);
    if (mode == M_SESSIONS)
        printf(" sessions_s=%.1f", done / s);
    if (mode == M_DRAIN) {
        double d = t1 - t_drain0;
        if (o_conc > 1)
            d = s;
        printf(" msgs=%ld msgs_s=%.0f MB_s=%.1f xfer_secs=%.4f", msgs, msgs / d, bytes / d / 1e6,
               d);
        if (o_sum) {
            printf(" sum=%016lx", (unsigned long)checksum);
            if (o_expect) {
                uint64_t x = strtoull(o_expect, NULL, 16);
                int good = checksum == x * (uint64_t)o_conc;
                printf(" sum_%s", good ? "ok" : "BAD");
                ok &= good;
            }
        }
    }
    if (o_pids) {
        printf(" server_cpu_s=%.4f client_cpu_s=%.2f", u1.cpu - u0.cpu, mycpu);
        if (mode == M_SESSIONS && done)
            printf(" server_cpu_us_per_session=%.1f", (u1.cpu - u0.cpu) / done * 1e6);
        if (mode == M_DRAIN && msgs)
            printf(" server_cpu_us_per_msg=%.2f", (u1.cpu - u0.cpu) / msgs * 1e6);
    }
    if (mode == M_IDLE && o_pids)
        printf(" procs=%d->%d rss_kb=%ld->%ld pss_kb=%ld->%ld priv_kb=%ld->%ld "
               "kb_per_conn_rss=%.1f kb_per_conn_pss=%.1f kb_per_conn_priv=%.1f",
               u0.procs, u1.procs, u0.rss_kb, u1.rss_kb, u0.pss_kb, u1.pss_kb, u0.priv_kb,
               u1.priv_kb, (double)(u1.rss_kb - u0.rss_kb) / ready,
               (double)(u1.pss_kb - u0.pss_kb) / ready, (double)(u1.priv_kb - u0.priv_kb) / ready);
    lat_print("session", &L_sess);
    lat_print("connect", &L_conn);
    lat_print("auth", &L_auth);
    lat_print("stat", &L_stat);
    lat_print("list", &L_list);
    lat_print("uidl", &L_uidl);
    if (mode == M_SESSIONS || o_depth == 1)
        lat_print("retr", &L_retr);
    lat_print("quit", &L_quit);
    printf("\n");
    return ok ? 0 : 1;
}
