//! How a command ends: the exit codes that scripts rely on, and the one error type that carries them to `main`.
//!
//! Promises: an operator reads one clear sentence with the fix in it; with `--json` the same as one JSON object on
//! standard output. Never fails because the reader of its output has gone.

use std::fmt;
use std::io::{ErrorKind, Write};

use serde_json::{Value, json};

/// Exit codes of `ringshard` and of its scripts (the meanings of sysexits.h where it has one).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Code {
    /// Failed while running.
    Failed = 1,
    /// Usage: an unknown flag or a missing argument.
    Usage = 2,
    /// A service or tool that it needs is missing, or a port is taken.
    Unavailable = 69,
    /// The kernel or the machine lacks something.
    Machine = 71,
    /// The data folder is in use or cannot be created.
    DataFolder = 73,
    /// I/O error, read-only or full disk.
    Io = 74,
    /// Permission denied.
    Permission = 77,
    /// Bad or impossible configuration.
    Config = 78,
}

/// Why a command did not succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What the process exits with.
    pub code: Code,
    /// What happened and what mends it, for an operator; may have several lines.
    pub text: String,
    /// More for `--json`, under the name `detail`.
    pub detail: Option<Value>,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(code: Code, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into(), detail: None }
    }

    /// The failure of an operation on a file or folder: permission, or the disk.
    pub fn of_file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Failure {
        let code = match error.kind() {
            ErrorKind::PermissionDenied => Code::Permission,
            _ => Code::Io,
        };
        Failure::new(code, format!("cannot {doing} {}: {error}", path.display()))
    }

    /// Tells the operator, and gives what `main` returns: the sentence on standard error, or with `json` one object on
    /// standard output.
    pub fn report(&self, json: bool) -> std::process::ExitCode {
        if json {
            let mut object = json!({ "error": self.text, "exit_code": self.code as u8 });
            if let Some(detail) = &self.detail {
                object["detail"] = detail.clone();
            }
            // What cannot be printed still has its exit code.
            let _ = writeln!(std::io::stdout(), "{object}");
        } else {
            eprintln!("ringshard: {}", self.text);
        }
        std::process::ExitCode::from(self.code as u8)
    }
}

/// Prints a command's result on standard output: text for people, or with `json` one object.
pub fn say(json: bool, text: &str, value: impl FnOnce() -> Value) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    let written = if json { writeln!(output, "{}", value()) } else { output.write_all(text.as_bytes()) };
    match written.and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Io, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Error;
    use std::path::Path;

    #[test]
    fn a_file_failure_tells_permission_from_disk() {
        let denied = Failure::of_file("read", Path::new("/x"), &Error::from(ErrorKind::PermissionDenied));
        assert_eq!(denied.code, Code::Permission);
        let full = Failure::of_file("write", Path::new("/x"), &Error::from(ErrorKind::StorageFull));
        assert_eq!(full.code as u8, 74);
        assert!(full.text.starts_with("cannot write /x: "), "{full}");
    }
}
