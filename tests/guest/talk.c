// SPDX-License-Identifier: Apache-2.0
//
// A payload that speaks: TCP, UDP and ping, IPv4 and IPv6, so many times each. Every message holds a token, by which the peer knows who
// sent it, whatever its source looks like outside. All sockets stay open until standard input ends. The first of each
// kind asks for OWN-PORT (and the one after it, where two families share one set of numbers).
//
//   talk TOKEN IPV4 IPV6 TCP-PORT UDP-PORT TIMES OWN-PORT
//
// Prints "spoken" when the peer has answered everything. One small program, because an emulated guest is slow at starting many.
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { TRIES = 10 };

static char message[128];

static void fail(const char *what) {
    fprintf(stderr, "talk: %s: %s\n", what, strerror(errno));
    exit(1);
}

// An address of the family with this port; the unspecified one without a text.
static socklen_t address(struct sockaddr_storage *to, int family, const char *text, int port) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
    memset(to, 0, sizeof *to);
    to->ss_family = family;
    if (family == AF_INET) v4->sin_port = htons(port); else v6->sin6_port = htons(port);
    void *place = family == AF_INET ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr;
    if (text && inet_pton(family, text, place) != 1) fail(text);
    return family == AF_INET ? sizeof *v4 : sizeof *v6;
}

static int reach(int family, int type, int protocol, const char *text, int port, int own_port) {
    struct sockaddr_storage there, here;
    struct timeval patience = {type == SOCK_STREAM ? 30 : 1, 0};
    int fd = socket(family, type, protocol);
    if (fd < 0) fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    int yes = 1;
    if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes);
    if (own_port && bind(fd, (struct sockaddr *)&here, address(&here, family, NULL, own_port))) fail("bind");
    socklen_t length = address(&there, family, text, port);
    if (connect(fd, (struct sockaddr *)&there, length)) fail("connect");
    return fd;
}

// Sends until an answer comes; only what may get lost is sent again.
static void ask(int fd, const char *bytes, size_t length, int tries) {
    char answer[256];
    while (tries-- > 0) {
        if (send(fd, bytes, length, 0) != (ssize_t)length) fail("send");
        if (recv(fd, answer, sizeof answer, 0) > 0) return;
        if (errno != EAGAIN) break;
    }
    fail("no answer");
}

// The kernel fills in identifier and checksum.
static void ping(int family, const char *text, int own_id) {
    char request[8 + sizeof message] = {family == AF_INET ? 8 : (char)128};
    size_t length = strlen(message);
    request[7] = 1;
    memcpy(request + 8, message, length);
    int fd = reach(family, SOCK_DGRAM, family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6, text, 0, own_id);
    ask(fd, request, 8 + length, TRIES);
}

int main(int count, char **words) {
    if (count != 8) { fputs("talk: TOKEN IPV4 IPV6 TCP-PORT UDP-PORT TIMES OWN-PORT\n", stderr); return 2; }
    int tcp = atoi(words[4]), udp = atoi(words[5]), times = atoi(words[6]);
    snprintf(message, sizeof message, "%s\n", words[1]);
    for (int n = 0; n < times; n++) {
        for (int v = 0; v < 2; v++) {
            int family = v ? AF_INET6 : AF_INET, own = n == 0 ? atoi(words[7]) : 0;
            const char *text = words[2 + v];
            ask(reach(family, SOCK_STREAM, 0, text, tcp, own), message, strlen(message), 1);
            ask(reach(family, SOCK_DGRAM, 0, text, udp, own), message, strlen(message), TRIES);
            ping(family, text, own ? own + v : 0);
        }
    }
    puts("spoken");
    fflush(stdout);
    char rest[64];
    while (read(0, rest, sizeof rest) > 0) {}
    return 0;
}
