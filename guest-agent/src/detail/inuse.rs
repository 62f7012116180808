//! Whether a dump can show anything. The kernel finds a namespace's TCP sockets by walking through the table of the whole
//! machine, which is long where memory is plenty (a quarter of a million rows at 24 GB); its counts are read in microseconds.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::diag::TCP;

/// Counts of one network namespace, `/proc/net/sockstat` and `sockstat6`.
#[derive(Debug)]
pub struct InUse {
    four: File,
    six: Option<File>,
}

impl InUse {
    /// Those of the calling thread's namespace.
    ///
    /// # Errors
    /// As open(2).
    pub fn open() -> io::Result<Self> {
        let open = |name: &str| File::open(format!("/proc/thread-self/net/{name}"));
        // A kernel without IPv6 has no such file.
        Ok(Self { four: open("sockstat")?, six: open("sockstat6").ok() })
    }

    /// Whether there may be a socket of this family and protocol. In doubt there is.
    #[must_use]
    pub fn any(&self, (family, protocol): (u8, u8)) -> bool {
        let file = if family == 2 { Some(&self.four) } else { self.six.as_ref() };
        let Some(file) = file else { return true };
        let mut buffer = [0; 1024];
        let Ok(count) = file.read_at(&mut buffer, 0) else { return true };
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
        let line = match (family, protocol) {
            (2, TCP) => "TCP: inuse ",
            (2, _) => "UDP: inuse ",
            (_, TCP) => "TCP6: inuse ",
            _ => "UDP6: inuse ",
        };
        in_use(&text, line) != Some(0)
    }
}

fn in_use(text: &str, line: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(line))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_read_and_a_missing_one_is_not_zero() {
        let text = "sockets: used 9\nTCP: inuse 12 orphan 0 tw 3\nUDP: inuse 0 mem 0\nUDPLITE: inuse 4\n";
        assert_eq!((in_use(text, "TCP: inuse "), in_use(text, "UDP: inuse ")), (Some(12), Some(0)));
        assert_eq!((in_use(text, "TCP6: inuse "), in_use("TCP: inuse x", "TCP: inuse ")), (None, None));
    }
}
