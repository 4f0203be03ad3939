//! `ringshard-bench peers`, as its users call it, with few clients.

use std::process::Command;

#[test]
fn every_side_serves_the_same_messages() {
    let bench = env!("CARGO_BIN_EXE_ringshard-bench");
    let arguments = ["peers", "--json", "--players", "24", "--pairs", "1", "--window-ms", "500"];
    let output = Command::new(bench).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(71) {
        eprintln!("skipped: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| result.pointer(name).and_then(serde_json::Value::as_f64).unwrap_or(-1.0);
    for side in ["ringshard", "tokio", "renet"] {
        assert!(number(&format!("/{side}/messages_per_core_s/median")) > 0.0, "{result:#}");
        let leg = result["legs"].as_array().unwrap().iter().find(|leg| leg["side"] == side).expect("it had a leg");
        assert_eq!((&leg["drops"], &leg["errors"]), (&0.into(), &0.into()), "{leg:#}");
        // 24 clients, 20 messages a second, half a second: each way.
        for way in ["messages_in", "messages_out"] {
            assert!((200..=280).contains(&leg[way].as_u64().unwrap()), "{leg:#}");
        }
        assert!(leg["bytes_out_mean"].as_f64() > Some(60.0) && leg["answered"].as_f64() > Some(0.8), "{leg:#}");
    }
    for peer in ["tokio", "renet"] {
        assert!(number(&format!("/{peer}_ratio/median")) > 0.0, "{result:#}");
    }
    assert_eq!(result["pairs"], 1);
}
