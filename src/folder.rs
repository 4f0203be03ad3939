//! The data folder of a node: made when it is missing, temporary with `--dev` unless one is named.
//!
//! Promises: a temporary folder goes away with its value. Never looks into it; the keeper does, and locks it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::exit::{Code, Failure};

/// An existing data folder.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    temporary: bool,
}

impl DataFolder {
    /// Opens the folder, or makes it; `None` makes a temporary one. One that cannot be made is exit code 73; 77 where
    /// permission is what lacks, 74 where the disk is full or read-only.
    pub fn open(path: Option<&Path>) -> Result<DataFolder, Failure> {
        let temporary = path.is_none();
        let name = || std::env::temp_dir().join(format!("ringshard-{}", std::process::id()));
        let path = path.map_or_else(name, Path::to_path_buf);
        let made = if temporary { std::fs::create_dir(&path) } else { std::fs::create_dir_all(&path) };
        made.map_err(|error| {
            let code = match error.kind() {
                ErrorKind::PermissionDenied => Code::Permission,
                ErrorKind::ReadOnlyFilesystem | ErrorKind::StorageFull => Code::Io,
                _ => Code::DataFolder,
            };
            let text =
                format!("cannot make the data folder {}: {error}; name another with `--data DIR`", path.display());
            Failure::new(code, text)
        })?;
        let probe = path.join(format!(".ringshard-{}", std::process::id()));
        let written = std::fs::write(&probe, [0]).and_then(|()| std::fs::remove_file(&probe));
        written.map_err(|error| {
            let shown = path.display();
            let code = if error.kind() == ErrorKind::PermissionDenied { Code::Permission } else { Code::Io };
            let mend = match code {
                Code::Permission => "let this user write it (`chown`)".to_owned(),
                _ => format!("make room or mount it writable (`df -h {shown}`, `findmnt -T {shown}`)"),
            };
            let text =
                format!("cannot write in the data folder {shown}: {error}; {mend}, or name another with `--data DIR`");
            Failure::new(code, text)
        })?;
        Ok(DataFolder { path, temporary })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("the temporary data folder {} stays: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_folder_goes_away_and_a_named_one_stays() {
        let temporary = DataFolder::open(None).unwrap();
        let path = temporary.path().to_path_buf();
        std::fs::write(path.join("file"), "x").unwrap();
        let named = path.join("deeper/data");
        drop(DataFolder::open(Some(&named)).unwrap());
        assert!(named.is_dir());
        let occupied = DataFolder::open(Some(&path.join("file"))).unwrap_err();
        assert!(occupied.code == Code::DataFolder && occupied.text.contains("--data"), "{occupied}");
        drop(temporary);
        assert!(!path.exists());
    }
}
