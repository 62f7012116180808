// SPDX-License-Identifier: Apache-2.0
//
// The floor that `make bench-agent` measures starts against: the least that a sandbox of this kind has to do, and nothing
// else. clone3 with the namespaces, id maps, an empty tmpfs root, the system folders read-only, /proc, pivot, exec as PID 1.
// No init, no record, no hash, no limits, no clean-up of its own.
//
//   floor [net] PROGRAM     `net` adds a network and a cgroup namespace
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROOT "/tmp"

static void must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        _exit(125);
    }
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    must(file, path);
    must(write(file, text, strlen(text)), path);
    close(file);
}

static void show(const char *from, const char *at) {
    must(mkdir(at, 0755), at);
    must(mount(from, at, NULL, MS_BIND, NULL), from);
    must(mount(NULL, at, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL), at);
}

static void device(const char *from, const char *at) {
    int file = open(at, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    must(file, at);
    close(file);
    must(mount(from, at, NULL, MS_BIND, NULL), from);
}

// A merged system's /bin is a link and stays one.
static void system_folder(const char *from, const char *at) {
    char target[256];
    ssize_t length = readlink(from, target, sizeof target - 1);
    if (length > 0) {
        target[length] = 0;
        must(symlink(target, at), at);
    } else if (access(from, F_OK) == 0) {
        show(from, at);
    }
}

static void inside(int go, char **command) {
    char byte;
    must(read(go, &byte, 1) == 1 ? 0 : -1, "wait for the id maps");
    must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
    must(mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"), "tmpfs");
    must(chdir(ROOT), "chdir");
    show("/usr", "usr");
    system_folder("/bin", "bin");
    system_folder("/lib", "lib");
    system_folder("/lib64", "lib64");
    must(mkdir("dev", 0755), "dev");
    device("/dev/null", "dev/null");
    device("/dev/zero", "dev/zero");
    device("/dev/urandom", "dev/urandom");
    must(mkdir("tmp", 01777), "tmp");
    must(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"), "tmp");
    must(mkdir("proc", 0755), "proc");
    must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount2");
    must(chdir("/"), "chdir /");
    char *environment[] = {"PATH=/usr/bin:/bin", NULL};
    execve(command[0], command, environment);
    must(-1, command[0]);
}

int main(int count, char **words) {
    int net = count > 1 && strcmp(words[1], "net") == 0;
    char **command = words + 1 + net;
    if (count < 2 + net) {
        fprintf(stderr, "usage: floor [net] PROGRAM [ARGUMENT ...]\n");
        return 2;
    }
    char users[64], groups[64];
    snprintf(users, sizeof users, "0 %u 1\n", geteuid());
    snprintf(groups, sizeof groups, "0 %u 1\n", getegid());
    int go[2];
    must(pipe2(go, O_CLOEXEC), "pipe");
    struct clone_args how = {
        .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
        .exit_signal = SIGCHLD,
    };
    if (net) {
        how.flags |= CLONE_NEWNET | CLONE_NEWCGROUP;
    }
    long child = syscall(SYS_clone3, &how, sizeof how);
    must((int)child, "clone3");
    if (child == 0) {
        inside(go[0], command);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%ld/setgroups", child);
    put(path, "deny");
    snprintf(path, sizeof path, "/proc/%ld/uid_map", child);
    put(path, users);
    snprintf(path, sizeof path, "/proc/%ld/gid_map", child);
    put(path, groups);
    must(write(go[1], "", 1), "let it go on");
    int status;
    must(waitpid((pid_t)child, &status, 0), "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
