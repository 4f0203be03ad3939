//! The truth file: what every player was told last, so that a checker can compare it with a server's data folder.
//!
//! Owns the file. Promises: one JSON object a line and player; replaced whole, so a reader never sees half of one.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use ringshard::exit::Failure;

use super::player::Told;

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
    fn a_folder_that_is_not_there_is_heard_of_at_once() {
        let failure = TruthFile::create(Path::new("/nowhere/at/all")).err().expect("it cannot be written");
        assert!(failure.text.starts_with("cannot write /nowhere/at/all.new"), "{failure}");
    }
}
