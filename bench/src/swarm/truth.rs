//! What the players were told, in files, so that a checker can compare it with a server's data folder.
//!
//! Owns the files. Promises of the truth file: what every player was told last, one JSON object a line and player; replaced
//! whole, so a reader never sees half of one. Of the file beside it (`.ops`): every answer to an operation, one JSON object
//! a line; only ever appended to, whole lines at a time.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ringshard::exit::Failure;
use ringshard::wire::goods::Refusal;
use serde::Serialize;

use super::player::{Told, ToldOperation};

/// See the module.
pub struct TruthFile {
    path: PathBuf,
}

impl TruthFile {
    /// A truth file at `path`; it is written at once, so that a wrong path is heard of before the run.
    pub fn create(path: &Path) -> Result<TruthFile, Failure> {
        let file = TruthFile { path: path.to_owned() };
        file.write(&[])?;
        Ok(file)
    }

    /// Replaces what the file says.
    pub fn write(&self, told: &[Told]) -> Result<(), Failure> {
        let mut text = String::new();
        for row in told {
            let row = serde_json::to_string(row).expect("finite numbers are JSON");
            writeln!(text, "{row}").expect("a string takes everything");
        }
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = self.path.with_file_name(name);
        fs::write(&fresh, text).map_err(|error| Failure::of_file("write", &fresh, &error))?;
        fs::rename(&fresh, &self.path).map_err(|error| Failure::of_file("replace", &self.path, &error))
    }
}

/// Where the answers to operations go that belong to a truth file.
pub fn operations_path(truth: &Path) -> PathBuf {
    let mut name = truth.file_name().unwrap_or_default().to_owned();
    name.push(".ops");
    truth.with_file_name(name)
}

/// One line of it: what was told, and its name for people.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    told: ToldOperation,
    name: String,
}

/// The file of answers; each load thread has its own handle.
pub struct OperationsFile {
    path: PathBuf,
    file: File,
    text: String,
}

impl OperationsFile {
    /// An empty one beside the truth file at `truth`.
    pub fn create(truth: &Path) -> Result<OperationsFile, Failure> {
        let path = operations_path(truth);
        let opened = File::create(&path).and_then(|_| OpenOptions::new().append(true).open(&path));
        let file = opened.map_err(|error| Failure::of_file("write", &path, &error))?;
        Ok(OperationsFile { path, file, text: String::new() })
    }

    /// Another handle to the same file.
    pub fn share(&self) -> Result<OperationsFile, Failure> {
        let file = self.file.try_clone().map_err(|error| Failure::of_file("write", &self.path, &error))?;
        Ok(OperationsFile { path: self.path.clone(), file, text: String::new() })
    }

    /// Adds what was told; it is in the file when this returns.
    pub fn append(&mut self, told: impl Iterator<Item = ToldOperation>) -> Result<(), Failure> {
        self.text.clear();
        for told in told {
            let line = Line { told, name: format!("{:?}", Refusal(told.refusal)) };
            let line = serde_json::to_string(&line).expect("numbers and names are JSON");
            writeln!(self.text, "{line}").expect("a string takes everything");
        }
        if self.text.is_empty() {
            return Ok(());
        }
        self.file.write_all(self.text.as_bytes()).map_err(|error| Failure::of_file("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_player_and_the_newest_write_stands() {
        let path = std::env::temp_dir().join(format!("ringshard-truth-{}", std::process::id()));
        let file = TruthFile::create(&path).expect("the folder can be written");
        let told = |client_id| Told { client_id, entity: 3 << 56 | client_id, x_m: 1.5, y_m: 2.0, z_m: 0.25, tick: 9 };
        file.write(&[told(1), told(2)]).expect("likewise");
        file.write(&[told(2), told(3), told(4)]).expect("likewise");
        let text = fs::read_to_string(&path).expect("it is there");
        fs::remove_file(&path).expect("it is ours");
        let ids = text.lines().map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).expect("one object a line");
            assert_eq!((row["x_m"].as_f64(), row["tick"].as_u64()), (Some(1.5), Some(9)));
            row["client_id"].as_u64().expect("a number")
        });
        assert_eq!(ids.collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn answers_are_appended_by_every_thread() {
        let truth = std::env::temp_dir().join(format!("ringshard-truth-of-answers-{}", std::process::id()));
        let mut file = OperationsFile::create(&truth).expect("the folder can be written");
        let told = |operation| ToldOperation { client_id: 1, entity: 3 << 56 | 1, operation, refusal: 11 };
        let mut other = file.share().expect("a file has many handles");
        file.append([told(1), told(2)].into_iter()).expect("likewise");
        other.append([told(3)].into_iter()).expect("likewise");
        file.append([told(4)].into_iter()).expect("likewise");
        let path = operations_path(&truth);
        let text = fs::read_to_string(&path).expect("it is there");
        fs::remove_file(&path).expect("it is ours");
        let read = |line: &str| serde_json::from_str::<ToldOperation>(line).expect("one object a line");
        assert_eq!(text.lines().map(read).collect::<Vec<_>>(), (1..=4).map(told).collect::<Vec<_>>());
        assert!(text.contains(r#""refusal":11,"name":"TooOld""#), "{text}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_heard_of_at_once() {
        let failure = TruthFile::create(Path::new("/nowhere/at/all")).err().expect("it cannot be written");
        assert!(failure.text.starts_with("cannot write /nowhere/at/all.new"), "{failure}");
    }
}
