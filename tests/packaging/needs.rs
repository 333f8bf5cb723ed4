//! How `tests/run` installs the programs that the tests need.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use serde_json::Value;

use super::{read, support::program::Folder};

/// An `apt-get` that writes down its packages. It knows no `chromium`, and then it installs nothing.
const APT_GET: &str = r#"#!/bin/sh
echo "$* $(cat "$FOLDER/policy" 2>/dev/null | tail -n 1)" >>"$FOLDER/asked"
case " $* " in *" chromium "*) exit 100 ;; esac
"#;

#[test]
fn a_package_that_is_not_known_stops_no_other_and_no_service_is_started() {
    let folder = Folder::new();
    for (name, text) in [("apt-get", APT_GET), ("sudo", "#!/bin/sh\nshift\nexec \"$@\"\n")] {
        fs::write(folder.path(name), text).expect("a file");
        fs::set_permissions(folder.path(name), fs::Permissions::from_mode(0o755)).expect("its mode");
    }
    let functions = read("tests/run");
    let functions = functions.split("\nensure_needs\n").next().expect("functions");
    let functions: String =
        functions.lines().filter(|line| !line.starts_with("cd ")).map(|line| format!("{line}\n")).collect();
    let needs = r#"needs=("no-such-a chromium" "no-such-b nginx" "no-such-c redis-server")"#;
    let script = format!("{functions}\n{needs}\npolicy=$FOLDER/policy\ninstall_needs");
    let path = std::env::var("PATH").expect("text");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).env("FOLDER", &folder.0).env("PATH", format!("{}:{path}", folder.0.display()));
    assert!(bash.status().expect("it runs").success());
    let asked = fs::read_to_string(folder.path("asked")).expect("a file");
    let install = "install -y -qq --no-install-recommends";
    let expected = [
        "update -qq ".to_owned(),
        format!("{install} chromium nginx redis-server exit 101"),
        format!("{install} chromium exit 101"),
        format!("{install} nginx exit 101"),
        format!("{install} redis-server exit 101"),
    ];
    assert_eq!(asked.lines().collect::<Vec<_>>(), expected);
    assert!(!folder.0.join("policy").exists(), "services stay forbidden");
}

/// A version of `A.B.C`.
fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("{text} is no version"))).collect()
}

#[test]
fn the_node_of_the_tests_runs_every_library_of_the_example() {
    let script = read("tests/run");
    let oldest = script.lines().find_map(|line| line.strip_prefix("node=")).expect("a version");
    let packages = |name: &str| {
        let lock: Value = serde_json::from_str(&read(name)).expect("JSON");
        lock["packages"].as_object().expect("packages").clone()
    };
    let mut engines = 0;
    for (name, package) in packages("examples/login/package-lock.json") {
        let Some(engine) = package["engines"]["node"].as_str() else { continue };
        let least = engine.strip_prefix(">=").expect("a version and all after it");
        assert!(version(oldest) >= version(least), "{name} needs Node {least}");
        engines += 1;
    }
    assert!(engines >= 3, "{engines}");
    for (name, package) in packages("tests/node/package-lock.json") {
        let Some(installed) = package["version"].as_str() else { continue };
        assert!(version(installed) >= version(oldest), "{name} {installed}");
    }
    assert!(read("docs/CONTRIBUTING.md").contains(&format!("Node {oldest}")), "{oldest}");
}
