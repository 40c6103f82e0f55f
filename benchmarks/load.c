/* A load generator for benchmarks/gateway.py that needs little of the processor that it shares with the gateway.

   load requests COUNT ADDRESS...   COUNT requests one after another, on one connection to each address
   load streams COUNT ADDRESS...    COUNT streams at once, round robin over the addresses
   load hold COUNT ADDRESS...       the same, but prints `holding` when all have a token, and ends when input is closed

   ADDRESS is IPV4:PORT. Standard input begins with the length of the HTTP request, in decimal on a line, then the request.
   Output: for `requests`, one line each with the seconds. For `streams`, one line each: seconds to the first token, seconds
   in total, tokens, reads that contained a token; and last the seconds of all streams. A token is an event with the word
   "content" in quotes. Exits with 1 on any status but 200, and on a stream that ends early. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

/* one byte less than the word "content" in quotes, so that no word is counted twice */
enum { TAIL = 8 };

struct stream {
    int fd, done;
    double started, first, total;
    long tokens, reads;
    size_t sent, kept;
    char tail[TAIL];
};

static char *request;
static size_t length;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what, const char *text) {
    fprintf(stderr, "load: %s: %.2000s\n", what, text);
    exit(1);
}

static int open_connection(const char *target, int flags) {
    char host[64];
    const char *colon = strchr(target, ':');
    if (!colon || colon - target >= (long)sizeof host) fail("no IPV4:PORT", target);
    snprintf(host, sizeof host, "%.*s", (int)(colon - target), target);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) fail("no IPV4:PORT", target);
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) fail("connect", strerror(errno));
    return fd;
}

static void read_request(void) {
    if (scanf("%zu", &length) != 1 || getchar() != '\n' || !(request = malloc(length))) fail("no request", "");
    if (fread(request, 1, length, stdin) != length) fail("short request", "");
}

/* Sends the request and reads a response with a Content-Length. Returns the seconds. */
static double time_request(int fd) {
    static char answer[1 << 20];
    double started = now();
    for (size_t sent = 0; sent < length;) {
        ssize_t some = write(fd, request + sent, length - sent);
        if (some <= 0) fail("write", strerror(errno));
        sent += some;
    }
    size_t have = 0, whole = 0;
    while (!whole || have < whole) {
        ssize_t some = read(fd, answer + have, sizeof answer - 1 - have);
        if (some <= 0) fail("the connection ended early", answer);
        have += some;
        answer[have] = 0;
        char *body = whole ? NULL : strstr(answer, "\r\n\r\n");
        if (!body) continue;
        char *field = strcasestr(answer, "\r\ncontent-length:");
        if (strncmp(answer, "HTTP/1.1 200", 12) || !field || field > body) fail("no 200 with a length", answer);
        whole = body + 4 - answer + atol(field + 17);
    }
    return now() - started;
}

static long count(const char *text, const char *word) {
    long found = 0;
    for (; (text = strstr(text, word)); text++) found++;
    return found;
}

/* Reads what has arrived. Text that may end within a word waits in `tail` for the next read. */
static void receive(struct stream *one) {
    static char data[TAIL + 65536 + 1];
    memcpy(data, one->tail, one->kept);
    ssize_t some = read(one->fd, data + one->kept, 65536);
    if (some < 0 && errno == EAGAIN) return;
    if (some <= 0) fail("a stream ended early", one->tail);
    size_t have = one->kept + some;
    data[have] = 0;
    if (!one->total && strncmp(data, "HTTP/1.1 200", 12)) fail("no stream", data);
    one->total = now() - one->started;
    long found = count(data, "\"content\"");
    if (found && !one->first) one->first = one->total;
    one->tokens += found;
    one->reads += found > 0;
    one->done = strstr(data, "[DONE]") != NULL;
    one->kept = have < TAIL ? have : TAIL;
    memcpy(one->tail, data + have - one->kept, one->kept);
    if (one->done) close(one->fd);
}

static void run_streams(long number, int targets, char **target, int hold) {
    struct stream *all = calloc(number, sizeof *all);
    struct epoll_event events[256];
    int poll = epoll_create1(0);
    long running = number, waiting = number;
    double started = now();
    for (long at = 0; at < number; at++) {
        all[at].started = now();
        all[at].fd = open_connection(target[at % targets], SOCK_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = &all[at]};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[at].fd, &event);
    }
    struct epoll_event input = {.events = EPOLLIN};
    if (hold) epoll_ctl(poll, EPOLL_CTL_ADD, 0, &input);
    while (running) {
        int ready = epoll_wait(poll, events, 256, 60000);
        if (ready <= 0) fail("no byte in 60 s", "");
        for (int at = 0; at < ready; at++) {
            struct stream *one = events[at].data.ptr;
            if (!one) exit(0);
            if (events[at].events & EPOLLOUT && one->sent < length) {
                ssize_t some = write(one->fd, request + one->sent, length - one->sent);
                if (some < 0 && errno != EAGAIN) fail("write", strerror(errno));
                one->sent += some > 0 ? some : 0;
                struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
                if (one->sent == length) epoll_ctl(poll, EPOLL_CTL_MOD, one->fd, &event);
            }
            if (!(events[at].events & ~EPOLLOUT)) continue;
            double before = one->first;
            receive(one);
            running -= one->done;
            if (!before && one->first && !--waiting && hold) puts("holding"), fflush(stdout);
        }
    }
    double took = now() - started;
    for (long at = 0; at < number; at++)
        printf("%.7f %.7f %ld %ld\n", all[at].first, all[at].total, all[at].tokens, all[at].reads);
    printf("%.7f\n", took);
}

int main(int count, char **word) {
    if (count < 4) fail("arguments", "requests|streams|hold COUNT ADDRESS...");
    long number = atol(word[2]);
    read_request();
    if (strcmp(word[1], "requests")) {
        run_streams(number, count - 3, word + 3, !strcmp(word[1], "hold"));
        return 0;
    }
    for (int at = 3; at < count; at++) {
        int fd = open_connection(word[at], 0);
        for (long done = 0; done < number; done++) printf("%.7f\n", time_request(fd));
        close(fd);
    }
    return 0;
}
