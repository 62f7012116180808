//! What payloads run, as scripts for bash.

/// What scripts do in their own folder, to devices, to /proc.
pub const EVERYDAY: &str = r#"
set -e
mkdir -p a b; echo one > a/x; mv a/x b/y; ln b/y a/z; ln -s y b/s; mkfifo p; mv b c; rm -r a c p
echo x > /dev/null; : > /dev/full; head -c1 /dev/zero > /dev/null; stty -F /dev/ptmx > /dev/null
echo two > /dev/stderr; echo x | tee /dev/stderr > /dev/null; echo name > /proc/self/comm; echo 0 > /proc/self/oom_score_adj
echo x > /dev/shm/confine.$$; truncate -s 0 /dev/shm/confine.$$; rm /dev/shm/confine.$$
sleep 60 & kill $!; wait $! || test $? = 143
"#;

/// Programs and a script each, in a folder of its own, run under everything. Those that are not here are named.
pub const PROGRAMS: &[(&str, &str)] = &[
    (
        "bash",
        "for i in 1 2 3; do echo $i; done | sort -r | (read x; test $x = 3); diff <(echo a) <(echo a); ulimit -a >/dev/null",
    ),
    (
        "python3",
        r#"cat > t.py <<'X'
import ctypes, ctypes.util, mmap, os, pty, socket, ssl, subprocess, sys, tempfile, threading, multiprocessing as mp, concurrent.futures as cf, shutil
def square(x): return x * x
if __name__ == '__main__':
    t = [threading.Thread(target=square, args=(i,)) for i in range(8)]; [x.start() for x in t]; [x.join() for x in t]
    for method in ('fork', 'spawn', 'forkserver'):
        with mp.get_context(method).Pool(2) as pool: assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with cf.ProcessPoolExecutor(2) as pool: assert list(pool.map(square, [3])) == [9]
    q = mp.Queue(); q.put(1); assert q.get() == 1
    assert subprocess.check_output(['echo', 'x'], start_new_session=True) == b'x\n'
    s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); c.close(); s.close()
    socket.getaddrinfo('localhost', 1); socket.if_nameindex(); a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'
    libc = ctypes.CDLL(None, use_errno=True); assert libc.getpid() == os.getpid()
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(square); assert callback(3) == 9
    m = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC); m.close()
    fd = os.memfd_create('x'); os.write(fd, b'x'); os.close(fd)
    assert os.WEXITSTATUS(pty.spawn(['true'])) == 0
    with tempfile.NamedTemporaryFile() as f: f.write(b'x'); shutil.copy(f.name, 'copy')
X
python3 t.py"#,
    ),
    (
        "perl",
        "perl -MIO::Socket::INET -MIPC::Open3 -e 'my $l=IO::Socket::INET->new(Listen=>1,LocalAddr=>q(127.0.0.1)) or die; IO::Socket::INET->new(PeerAddr=>q(127.0.0.1),PeerPort=>$l->sockport) or die; system(q(true))==0 or die; waitpid open3(my $i,my $o,undef,q(true)),0; $? and die'",
    ),
    (
        "gcc",
        "printf '#include <pthread.h>\n#include <stdio.h>\nvoid *f(void *x){return x;}int main(){pthread_t t;pthread_create(&t,0,f,0);pthread_join(t,0);puts(\"x\");}' > t.c; gcc -O1 -pthread t.c -o t; ./t",
    ),
    ("gcc", "echo 'int main(){return 0;}' > l.c; gcc -fsanitize=address l.c -o l && ./l"),
    ("make", "printf 'all: a/x b/y\\na/x b/y:\\n\\tmkdir -p $(@D); echo $@ > $@\\n' > Makefile; make -j4; test -s b/y"),
    (
        "git",
        "git init -q r; cd r; echo x > f; git add f; git -c user.name=n -c user.email=e commit -qm m; git gc -q; git clone -q . ../c; git mv f g; git -C ../c fsck",
    ),
    (
        "tar",
        "mkdir d; echo x > d/f; ln d/f d/g; mkfifo d/p; tar czf t.tgz d; rm -r d; tar xzf t.tgz; test -p d/p; test d/f -ef d/g",
    ),
    (
        "java",
        "echo 'class T{public static void main(String[] a) throws Exception{var t=new Thread(()->{});t.start();t.join();new ProcessBuilder(\"true\").start().waitFor();new java.net.ServerSocket(0).close();System.gc();}}' > T.java; java T.java",
    ),
    (
        "node",
        "node -e 'require(\"child_process\").execSync(\"true\"); const {Worker}=require(\"worker_threads\"); new Worker(\"1\",{eval:true}); require(\"net\").createServer().listen(0,function(){this.close()}); require(\"fs\").writeFileSync(\"f\",\"x\")'",
    ),
    ("gdb", "gdb -q -batch -ex run -ex 'info registers rip' --args /bin/true 2>&1 | grep -q 'exited normally'"),
    ("strace", "strace -f -o log sh -c 'true; true'; grep -q execve log"),
    ("setarch", "setarch -R true"),
    ("script", "script -qec 'test -t 1; tty > /dev/tty; echo x > /dev/tty' log"),
    (
        "go",
        "cat > t.go <<'X'\npackage main\nimport (\"net\"; \"os/exec\")\nfunc main() { l, e := net.Listen(\"tcp\", \"127.0.0.1:0\"); if e != nil { panic(e) }; l.Close(); if exec.Command(\"true\").Run() != nil { panic(1) } }\nX\ngo run t.go",
    ),
    (
        "rustc",
        "echo 'fn main() { std::thread::spawn(|| {}).join().unwrap(); std::process::Command::new(\"true\").status().unwrap(); }' > t.rs; rustc t.rs && ./t",
    ),
    ("curl", "curl -s http://127.0.0.1:1/ || test $? = 7"),
    ("ip", "ip addr show lo > /dev/null; ip route"),
    ("openssl", "openssl rand -hex 4; openssl dgst -sha256 /bin/true"),
    ("xz", "head -c 1000000 /dev/urandom > f; xz -T2 f; xz -d f.xz"),
    ("rsync", "mkdir a; echo x > a/f; rsync -a a/ b/; test -s b/f"),
    ("sqlite3", "sqlite3 x.db 'pragma journal_mode=wal; create table t(a); insert into t values(1); select * from t'"),
    (
        "cp",
        "echo x > f; cp --reflink=auto -a f g; mv g h; dd if=f of=i status=none; install -m 755 f j; find . -type f | xargs -P4 -n1 cat; flock f true; timeout 5 nice true; df . ; ps ; id",
    ),
];
