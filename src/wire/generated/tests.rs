//! Generated code matches its schema.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const FLATC_VERSION: &str = "flatc version 25.12.19";
const SCHEMAS: [(&str, &[u8], &str); 2] = [
    ("wire", include_bytes!("../../../schemas/wire.fbs"), include_str!("wire_generated.rs")),
    ("messages", include_bytes!("../../../schemas/messages.fbs"), include_str!("messages_generated.rs")),
];

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn generated_code_belongs_to_the_schemas_as_they_are() {
    let mut lock = String::from("# FNV-1a 64 of each schema and of the code that flatc 25.12.19 made from it.\n");
    for (name, schema, code) in SCHEMAS {
        let code = fnv1a(code.as_bytes());
        writeln!(lock, "{name} {:016x} {code:016x}", fnv1a(schema)).expect("a string");
    }
    let held = include_str!("generated.lock");
    assert_eq!(
        held, lock,
        "a schema or its code changed: run `flatc --rust -o src/wire/generated schemas/wire.fbs schemas/messages.fbs` with flatc \
         25.12.19, then write the right-hand text to src/wire/generated/generated.lock"
    );
}

/// Where flatc 25.12.19 is on PATH; elsewhere the hashes above have to do.
#[test]
fn generated_code_is_what_flatc_makes() {
    let version = Command::new("flatc").arg("--version").output();
    if !version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == FLATC_VERSION) {
        eprintln!("skipped: {FLATC_VERSION} is not on PATH");
        return;
    }
    let folder: PathBuf = std::env::temp_dir().join(format!("ringshard-flatc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder in the temporary folder");
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas");
    for (name, _, code) in SCHEMAS {
        let schema = schemas.join(format!("{name}.fbs"));
        let status = Command::new("flatc").args(["--rust", "-o"]).args([&folder, &schema]).status();
        assert!(status.expect("flatc runs").success());
        let made = std::fs::read_to_string(folder.join(format!("{name}_generated.rs"))).expect("flatc made it");
        assert!(
            made == code,
            "src/wire/generated/{name}_generated.rs differs from what flatc makes of schemas/{name}.fbs"
        );
    }
    std::fs::remove_dir_all(&folder).expect("our own folder");
}
