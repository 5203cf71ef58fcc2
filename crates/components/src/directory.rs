//! Components as files: `NAME.wasm` in one directory, and whether a file was replaced.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::engine::LoadError;

/// A directory of components.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// What tells a file from the one that was there before, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Directory {
    /// The directory at this path. It need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a component.
    ///
    /// # Errors
    /// [`LoadError::NotThere`] for a name that is none: it could lead out of the directory.
    pub fn file(&self, name: &str) -> Result<PathBuf, LoadError> {
        if !is_name(name) {
            return Err(LoadError::NotThere(format!(
                "a component named {:?}",
                name.chars().take(80).collect::<String>()
            )));
        }
        Ok(self.path.join(format!("{name}.wasm")))
    }

    /// What the file looks like from outside; `None` if there is none that can be seen.
    pub fn stamp(&self, name: &str) -> Option<Stamp> {
        Stamp::of(&fs::metadata(self.file(name).ok()?).ok()?).ok()
    }

    /// Reads a file, if it has at most `limit` bytes. Its stamp is that of before: what is written meanwhile is seen as
    /// another change.
    ///
    /// # Errors
    /// [`LoadError::NotThere`], [`LoadError::TooLarge`] or [`LoadError::Unreadable`].
    pub fn read(&self, name: &str, limit: usize) -> Result<(Vec<u8>, Stamp), LoadError> {
        let path = self.file(name)?;
        let shown = || path.display().to_string();
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => LoadError::NotThere(shown()),
            _ => LoadError::Unreadable { path: shown(), reason: error.to_string() },
        };
        let file = fs::File::open(&path).map_err(failed)?;
        let stamp = file.metadata().and_then(|metadata| Stamp::of(&metadata)).map_err(failed)?;
        let mut bytes = Vec::new();
        // One more than allowed shows that it is too large, however fast it grows.
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > limit {
            let bytes = bytes.len().max(usize::try_from(stamp.length).unwrap_or(usize::MAX));
            return Err(LoadError::TooLarge { bytes, limit });
        }
        Ok((bytes, stamp))
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        Ok(Self { modified: metadata.modified()?, length: metadata.len(), inode: metadata.ino() })
    }
}

/// Whether this may name a component: 1 to 100 of A-Z a-z 0-9 . _ - and no dot first.
pub fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=100).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_no_other_directory() {
        let directory = Directory::new("/strategies");
        assert_eq!(directory.file("capacity-2.1").unwrap(), Path::new("/strategies/capacity-2.1.wasm"));
        for name in ["", ".", "..", "../secret", "/etc/passwd", "a/b", ".hidden", "a\0b", "ä", &"a".repeat(101)] {
            assert!(matches!(directory.file(name), Err(LoadError::NotThere(_))), "{name:?}");
        }
    }

    #[test]
    fn a_replaced_file_has_another_stamp_and_a_large_one_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        assert!(matches!(directory.read("a", 10), Err(LoadError::NotThere(path)) if path.ends_with("/a.wasm")));
        assert_eq!(directory.stamp("a"), None);

        let file = directory.file("a").unwrap();
        fs::write(&file, "one").unwrap();
        let (bytes, first) = directory.read("a", 3).unwrap();
        assert_eq!((bytes.as_slice(), directory.stamp("a")), (&b"one"[..], Some(first)));
        // The same length and time: a file copied with its times, moved into place.
        let other = folder.path().join("other");
        fs::write(&other, "two").unwrap();
        fs::File::options().write(true).open(&other).unwrap().set_modified(first.modified).unwrap();
        fs::rename(&other, &file).unwrap();
        assert_ne!(directory.stamp("a"), Some(first));
        assert_eq!(directory.read("a", 2).unwrap_err(), LoadError::TooLarge { bytes: 3, limit: 2 });
        fs::create_dir(directory.file("folder").unwrap()).unwrap();
        assert!(matches!(directory.read("folder", 9), Err(LoadError::Unreadable { .. })));
    }
}
