//! Which network namespaces are meant: names below a folder, by pattern. Pure but for reading the folder.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

/// Namespaces followed at once; a site with more of them has another problem.
pub(super) const MAX_NAMESPACES: usize = 1024;

/// Whether the name is meant. `*` stands for any characters, also none.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    rest.char_indices()
        .map(|(at, _)| at)
        .chain([rest.len()])
        .any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
}

/// The namespaces of the folder that a pattern means, each with the number that tells it from a later one of the same name. At most
/// [`MAX_NAMESPACES`], and how many more there are.
///
/// # Errors
/// The folder cannot be read; that it is not there is no error.
pub(super) fn present(folder: &Path, patterns: &[String]) -> io::Result<(BTreeMap<String, u64>, usize)> {
    let (mut found, mut more) = (BTreeMap::new(), 0);
    let home = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, 0)),
        metadata => metadata?.dev(),
    };
    for file in fs::read_dir(folder)? {
        let file = file?;
        let Ok(name) = file.file_name().into_string() else { continue };
        if !patterns.iter().any(|pattern| matches(pattern, &name)) {
            continue;
        }
        // Through the mount: on the folder's own device it is a plain file, in which a namespace is only about to appear.
        let Ok(metadata) = fs::metadata(file.path()) else { continue };
        if metadata.dev() == home {
            continue;
        }
        if found.len() < MAX_NAMESPACES {
            found.insert(name, metadata.ino());
        } else {
            more += 1;
        }
    }
    Ok((found, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("qrouter-*", "qrouter-1b2c") && matches("qrouter-*", "qrouter-") && matches("*", ""));
        assert!(matches("fip-*-a", "fip-x-a-a") && matches("fip", "fip") && matches("*ü*", "aüb"));
        assert!(!matches("qrouter-*", "fip-1") && !matches("fip", "fip-1") && !matches("fip-*-a", "fip-a"));
    }
}
