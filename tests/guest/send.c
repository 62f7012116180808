// SPDX-License-Identifier: Apache-2.0
//
// Sends a known number of bytes and says from which port.
//
//   send tcp ADDRESS PORT BYTES [SOURCE]             one connection: a line, then zeros until BYTES are sent
//   send udp ADDRESS PORT BYTES [SOURCE [TIMES]]     datagrams of BYTES, without waiting for answers
//
// SOURCE may be an address that this machine does not have (IP_TRANSPARENT; root), or "-". Prints the source port.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536] = "bulk\n";

static void fail(const char *what) {
    fprintf(stderr, "send: %s: %s\n", what, strerror(errno));
    exit(1);
}

static socklen_t address(struct sockaddr_storage *to, const char *text, int port) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
    memset(to, 0, sizeof *to);
    to->ss_family = strchr(text, ':') ? AF_INET6 : AF_INET;
    void *place = to->ss_family == AF_INET ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr;
    if (inet_pton(to->ss_family, text, place) != 1) fail(text);
    if (to->ss_family == AF_INET) v4->sin_port = htons(port); else v6->sin6_port = htons(port);
    return to->ss_family == AF_INET ? sizeof *v4 : sizeof *v6;
}

static void pretend(int fd, int family, const char *source) {
    struct sockaddr_storage here;
    int yes = 1, v4 = family == AF_INET;
    if (setsockopt(fd, v4 ? IPPROTO_IP : IPPROTO_IPV6, v4 ? IP_TRANSPARENT : IPV6_TRANSPARENT, &yes, sizeof yes)) fail("transparent");
    if (bind(fd, (struct sockaddr *)&here, address(&here, source, 0))) fail("bind");
}

int main(int count, char **words) {
    if (count < 5) { fputs("send: tcp|udp ADDRESS PORT BYTES [SOURCE [TIMES]]\n", stderr); return 2; }
    int stream = strcmp(words[1], "tcp") == 0, times = count > 6 ? atoi(words[6]) : 1;
    long bytes = atol(words[4]);
    struct sockaddr_storage there, here;
    socklen_t length = address(&there, words[2], atoi(words[3]));
    int fd = socket(there.ss_family, stream ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (fd < 0) fail("socket");
    if (count > 5 && strcmp(words[5], "-")) pretend(fd, there.ss_family, words[5]);
    if (connect(fd, (struct sockaddr *)&there, length)) fail("connect");
    length = sizeof here;
    if (getsockname(fd, (struct sockaddr *)&here, &length)) fail("getsockname");
    if (!stream) {
        for (int n = 0; n < times; n++) if (send(fd, buffer, bytes, 0) != bytes) fail("send");
    }
    for (long sent = 0; stream && sent < bytes;) {
        // The line is the first of what is sent and of nothing else.
        const char *from = sent ? buffer + 5 : buffer;
        long room = sizeof buffer - (from - buffer), left = bytes - sent;
        ssize_t done = send(fd, from, sent == 0 && left > 5 ? 5 : left < room ? left : room, 0);
        if (done < 0) fail("send");
        sent += done;
    }
    // The other side has everything when it has closed, too.
    if (stream) {
        char rest[256];
        shutdown(fd, SHUT_WR);
        while (read(fd, rest, sizeof rest) > 0) {}
    }
    printf("%d\n", ntohs(here.ss_family == AF_INET ? ((struct sockaddr_in *)&here)->sin_port : ((struct sockaddr_in6 *)&here)->sin6_port));
    return 0;
}
