//! The files in `packaging/`, the workflows and the manifest fit the program: its settings, its commands, its version.
//!
//! `packaging/check` tries the Debian package itself. That takes longer, and root.

#[path = "packaging/licences.rs"]
mod licences;
#[path = "packaging/needs.rs"]
mod needs;
mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    process::{Command, Output},
};

use rejoin::Config;
use serde::Deserialize;
use serde_json::Value;
use support::{program::Folder, tls::Pair};

const UNIT: &str = "packaging/rejoin.service";
const SETTINGS: &str = "packaging/rejoin.toml";
const DOCKERFILE: &str = "packaging/Dockerfile";

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs the program to its end.
fn rejoin(arguments: &[&str], environment: &[(String, String)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .env_clear()
        .envs(environment.iter().cloned())
        .args(arguments)
        .output()
        .expect("it runs")
}

/// Runs another program. `None` if it is not installed, which is a failure in CI.
fn tool(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{program}: {error}");
            let _ = writeln!(std::io::stderr(), "SKIPPED {}: {program}: {error}", module_path!());
            None
        }
    }
}

fn assert_silent(of: &str, output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{of}: {}", String::from_utf8_lossy(&said));
}

/// The values of a setting of the unit.
fn of_unit(name: &str) -> Vec<String> {
    let unit = read(UNIT);
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
    unit.lines().filter_map(value).collect()
}

/// How many seconds the server takes to end at most, with the default settings.
fn longest_end() -> u64 {
    let config = Config::default();
    config.drain_grace.as_secs() + 13 + config.retain_total as u64 / (32 << 20)
}

#[test]
fn the_packaged_settings_show_every_default() {
    let shown = rejoin(&["config"], &[]);
    let file = read(SETTINGS);
    let names: BTreeSet<_> =
        file.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).collect();
    for line in String::from_utf8(shown.stdout).expect("UTF-8").lines() {
        let line = line.split("  # ").next().expect("a first part").trim_end();
        match line.trim_start_matches("# ").strip_suffix(" is not set") {
            Some("config") => {}
            Some(name) => {
                assert!(names.iter().any(|(named, _)| *named == name), "{name} is not in {SETTINGS}")
            }
            None if line.starts_with('#') => {}
            None => {
                assert!(file.lines().any(|own| own == format!("# {line}")), "{line} is not in {SETTINGS}")
            }
        }
    }
}

#[test]
fn the_packaged_settings_are_accepted_as_they_are_and_with_every_line_in_force() {
    let packaged = read(SETTINGS);
    let is_set = |line: &str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '))
    };
    let in_force =
        |line: &str| line.strip_prefix("# ").filter(|rest| is_set(rest)).unwrap_or(line).to_owned();
    // A certificate comes from files or by ACME.
    let by_acme = |line: &&str| line.starts_with("# tls-acme");
    let lines = packaged.lines().filter(|line| !by_acme(line));
    let whole = lines.map(in_force).collect::<Vec<_>>().join("\n");
    assert!(whole.contains("\nretain-age =") && whole.contains("\n[[key]]"), "{whole}");
    // The files that it names are examples.
    let (folder, pair) = (Folder::new(), Pair::for_days(90));
    let whole = [("/etc/rejoin/fullchain.pem", pair.certificate), ("/etc/rejoin/privkey.pem", pair.key)]
        .into_iter()
        .fold(whole, |whole, (example, text)| {
            let path = folder.path(&example.replace('/', "_"));
            fs::write(&path, text).expect("it is written");
            whole.replace(example, &path)
        });
    let with_key = whole.replace("\"…\"", &format!("{:?}", "5a".repeat(32)));
    assert_eq!(mistakes_in(&packaged), None);
    assert_eq!(mistakes_in(&with_key), None);

    // Text that everyone can read is no credential: the examples are refused until they are replaced.
    let mistakes = mistakes_in(&whole).expect("a mistake");
    assert!(mistakes.contains("key \"backend\": sha256"), "{mistakes}");
    let on_network = with_key.replace("127.0.0.1:7070", "0.0.0.0:7070");
    let mistakes = mistakes_in(&on_network.replace("insecure-open = false", "")).expect("a mistake");
    assert!(mistakes.contains("jwt-secret"), "{mistakes}");
}

/// The text of the program about the mistakes in a file with these settings. `None` if it accepts the file.
fn mistakes_in(settings: &str) -> Option<String> {
    let folder = Folder::new();
    let path = folder.path("rejoin.toml");
    fs::write(&path, settings).expect("it is written");
    let checked = rejoin(&["config", "--check", &path], &[]);
    (!checked.status.success()).then(|| String::from_utf8_lossy(&checked.stderr).into_owned())
}

#[test]
fn systemd_finds_no_fault_in_the_unit() {
    let folder = Folder::new();
    let path = folder.path("rejoin.service");
    let unit = read(UNIT).replace("/usr/bin/rejoin", env!("CARGO_BIN_EXE_rejoin"));
    fs::write(&path, unit).expect("it is written");
    if let Some(verified) = tool("systemd-analyze", &["verify", "--man=no", &path]) {
        assert_silent(UNIT, &verified);
    }
}

#[test]
fn the_unit_fits_the_package() {
    let manifest = read("Cargo.toml");
    assert_eq!(of_unit("ExecStart"), ["/usr/bin/rejoin serve"]);
    assert!(manifest.contains(r#"["target/release/rejoin", "usr/bin/", "755"]"#));
    assert_eq!(of_unit("Environment"), ["REJOIN_CONFIG=/etc/rejoin.toml"]);
    assert!(manifest.contains(&format!(r#"["{SETTINGS}", "etc/rejoin.toml", "640"]"#)));
    let [user, state] = [of_unit("User"), of_unit("StateDirectory")].map(|values| values.concat());
    assert!(read("packaging/deb/postinst").contains(&format!("--no-create-home {user}\n")));
    assert!(read(SETTINGS).contains(&format!("\nstate = \"/var/lib/{state}/")));
    let timeout: u64 = of_unit("TimeoutStopSec").concat().parse().expect("seconds");
    assert!(timeout > longest_end(), "{timeout} s");
    assert_eq!(of_unit("StartLimitIntervalSec"), ["0"]);
}

#[test]
fn the_package_asks_for_the_c_library_for_which_the_program_is_compiled() {
    let script = read("packaging/build");
    let glibc = script.lines().find_map(|line| line.strip_prefix("glibc=")).expect("a version");
    assert!(read("Cargo.toml").contains(&format!("depends = \"libc6 (>= {glibc}), adduser\"")), "{glibc}");
}

#[test]
fn every_command_has_a_manual_page_without_warnings() {
    let folder = Folder::new();
    let help = String::from_utf8(rejoin(&["--help"], &[]).stdout).expect("UTF-8");
    assert_silent("rejoin man", &rejoin(&["man", &folder.path("man")], &[]));
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names =
        commands.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<_> =
        names.filter(|name| *name != "help").map(|name| format!("rejoin-{name}.1")).collect();
    assert!(names.len() > 8, "{help}");
    let folder_of_pages = fs::read_dir(folder.path("man")).expect("a folder");
    let pages: BTreeSet<_> = folder_of_pages
        .map(|page| page.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    assert!(pages.is_superset(&names), "{names:?}, {pages:?}");
    assert!(pages.contains("rejoin.1"), "{pages:?}");
    for page in &pages {
        let path = folder.path(&format!("man/{page}"));
        match tool("groff", &["-Kutf8", "-man", "-ww", "-z", "-Tutf8", &path]) {
            Some(rendered) => assert_silent(page, &rendered),
            None => return,
        }
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error_with_its_name() {
    let refused = rejoin(&["man", "/dev/null/man"], &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("/dev/null/man"), "{refused:?}");
}

/// The instructions of the Dockerfile with this name.
fn of_image(name: &str) -> Vec<String> {
    let file = read(DOCKERFILE);
    let rest = |line: &str| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    file.lines().filter_map(rest).collect()
}

/// A command in the brackets of an instruction, without the program.
fn arguments_of(instruction: &str) -> Vec<String> {
    let (_, list) = instruction.split_once('[').expect("a list");
    let words: Vec<String> = serde_json::from_str(&format!("[{list}")).expect("JSON");
    words.into_iter().filter(|word| word != "/usr/bin/rejoin").collect()
}

/// The variables that the image sets.
fn variables_of_image() -> Vec<(String, String)> {
    let pairs = of_image("ENV");
    pairs
        .iter()
        .map(|pair| pair.split_once('=').expect("a value"))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Checks that the image accepts these variables beside its own.
fn assert_accepted(of: &str, variables: &[(String, String)]) {
    let variables = [variables, &variables_of_image()].concat();
    let shown = rejoin(&["config"], &variables);
    assert!(
        shown.status.success() && shown.stderr.is_empty(),
        "{of}: {}",
        String::from_utf8_lossy(&shown.stderr)
    );
}

#[test]
fn the_image_runs_commands_that_exist() {
    let commands = [of_image("ENTRYPOINT"), of_image("CMD"), of_image("HEALTHCHECK")].concat();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for command in commands {
        let mut arguments = arguments_of(&command);
        arguments.push("--help".to_owned());
        let help = rejoin(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        assert!(help.status.success(), "{command}");
    }
    let secret = "s".repeat(32);
    assert_accepted(DOCKERFILE, &[("REJOIN_JWT_SECRET".to_owned(), secret)]);
    assert_eq!(of_image("USER"), ["65532:65532"]);
}

#[test]
fn an_image_without_credentials_says_so_and_does_not_start() {
    let refused = rejoin(&["serve"], &variables_of_image());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("requires credentials"), "{refused:?}");
}

#[test]
fn the_compose_file_sets_variables_that_the_server_accepts() {
    let compose: Value = yaml_serde::from_str(&read("packaging/compose.yaml")).expect("YAML");
    let server = &compose["services"]["rejoin"];
    let variables = server["environment"].as_object().expect("variables").iter();
    let given = |value: &str| if value.starts_with("${") { "s".repeat(32) } else { value.to_owned() };
    let variables: Vec<_> =
        variables.map(|(name, value)| (name.clone(), given(value.as_str().expect("text")))).collect();
    assert_accepted("compose.yaml", &variables);

    // The documented command prints a token that this server accepts.
    for place in ["packaging/compose.yaml", "docs/operations.md"] {
        let text = read(place);
        let (_, command) = text.split_once("exec -T rejoin rejoin ").expect(place);
        let command = command.lines().next().expect("a line").trim_end_matches(')');
        let words: Vec<_> = command.split(' ').map(|word| word.trim_matches('\'')).collect();
        let printed = rejoin(&words, &variables);
        let token = String::from_utf8(printed.stdout).expect("UTF-8");
        let checked = rejoin(&["token", "check", token.trim()], &variables);
        assert!(checked.status.success(), "{place}: {checked:?}");
    }
    let grace =
        server["stop_grace_period"].as_str().and_then(|text| text.strip_suffix('s')).expect("seconds");
    assert!(grace.parse::<u64>().expect("a number") > longest_end(), "{grace}");
}

/// The documents of the manifest in `docs/operations.md`.
fn manifest() -> Vec<Value> {
    let document = read("docs/operations.md");
    let block = document.split("```yaml\n").skip(1).find(|block| block.contains("kind: Deployment"));
    let block = block.and_then(|block| block.split("```").next()).expect("a manifest");
    yaml_serde::Deserializer::from_str(block).map(|each| Value::deserialize(each).expect("YAML")).collect()
}

#[test]
fn the_manifest_gives_the_server_time_to_end_and_probes_what_it_serves() {
    let documents = manifest();
    let deployment = documents.iter().find(|each| each["kind"] == "Deployment").expect("a deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("seconds");
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(grace > pause + longest_end(), "{grace} s");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health/live");
    let port = container["ports"][0]["containerPort"].as_u64().expect("a port");
    assert_eq!(Config::default().listen[0].to_string(), format!("127.0.0.1:{port}"));
    let admin = &container["ports"][1];
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], admin["name"]);
    }
    let at = format!("0.0.0.0:{}", admin["containerPort"]);
    let variables = container["env"].as_array().expect("variables").iter();
    let settings: Vec<_> = variables.map(|each| (&each["name"], &each["value"])).collect();
    assert!(settings.contains(&(&"REJOIN_ADMIN_LISTEN".into(), &at.into())), "{settings:?}");

    let variables = container["env"].as_array().expect("variables").iter().map(|each| {
        let name = each["name"].as_str().expect("a name").to_owned();
        // A secret has no value there.
        let value = each["value"].as_str().map_or_else(|| "s".repeat(32), str::to_owned);
        (name, value)
    });
    assert_accepted("the manifest", &variables.collect::<Vec<_>>());

    let service = documents.iter().find(|each| each["kind"] == "Service").expect("a service");
    let ports = service["spec"]["ports"].as_array().expect("ports");
    assert!(ports.iter().all(|port| port["targetPort"] == container["ports"][0]["name"]), "{ports:?}");
    assert_eq!(service["spec"]["selector"], deployment["spec"]["selector"]["matchLabels"]);
    assert_eq!(
        deployment["spec"]["template"]["metadata"]["labels"],
        deployment["spec"]["selector"]["matchLabels"]
    );
}

#[test]
fn the_workflows_run_the_scripts_of_the_repository() {
    let steps = |name: &str| {
        let workflow: Value = yaml_serde::from_str(&read(name)).expect("YAML");
        let jobs = workflow["jobs"].as_object().expect("jobs").values().cloned().collect::<Vec<_>>();
        let steps = jobs.iter().flat_map(|job| job["steps"].as_array().expect("steps").clone());
        steps.filter_map(|step| step["run"].as_str().map(str::to_owned)).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(steps(".github/workflows/tests.yml"), "tests/run");
    let release = steps(".github/workflows/release.yml");
    for script in ["tests/run", "packaging/build", "packaging/check"] {
        assert!(release.lines().any(|line| line.split(' ').next() == Some(script)), "{script}: {release}");
        assert_silent(script, &Command::new("bash").args(["-n", script]).output().expect("bash runs"));
    }
}

#[test]
fn every_place_has_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let debian = read("packaging/deb/changelog");
    assert!(debian.starts_with(&format!("rejoin ({version}-1) ")), "{debian}");
    let headings = read("docs/changelog.md");
    let newest = headings.lines().find(|line| line.starts_with("## ")).expect("a heading");
    assert_eq!(newest.split(' ').nth(1), Some(version), "{newest}");
    let openapi: Value = serde_json::from_str(&read("docs/openapi.json")).expect("JSON");
    assert_eq!(openapi["info"]["version"], version, "docs/openapi.json");
    for name in ["web/package.json", "web/package-lock.json"] {
        let package: Value = serde_json::from_str(&read(name)).expect("JSON");
        assert_eq!(package["version"], version, "{name}");
        let locked = &package["packages"][""]["version"];
        assert!(locked.is_null() || *locked == version, "{name}: {locked}");
    }
    for lock in ["Cargo.lock", "tests/fuzz/Cargo.lock"] {
        assert!(read(lock).contains(&format!("name = \"rejoin\"\nversion = \"{version}\"\n")), "{lock}");
    }
    let document = read("docs/operations.md");
    for before in ["./rejoin_", "`rejoin-", "example/rejoin:"] {
        assert!(document.contains(&format!("{before}{version}")), "{before} in docs/operations.md");
    }
}

#[test]
fn the_image_and_the_workflows_compile_with_one_rust_that_is_new_enough() {
    let build = of_image("FROM").remove(0);
    let image = build.strip_prefix("docker.io/library/").and_then(|rest| rest.strip_suffix(" AS build"));
    let image = image.expect("an image of Rust");
    for name in [".github/workflows/tests.yml", ".github/workflows/release.yml"] {
        let workflow: Value = yaml_serde::from_str(&read(name)).expect("YAML");
        let jobs = workflow["jobs"].as_object().expect("jobs");
        let builds = |step: &Value| {
            let run = step["run"].as_str().unwrap_or_default();
            run.starts_with("tests/") || run.starts_with("cargo ")
        };
        let building =
            jobs.iter().filter(|(_, job)| job["steps"].as_array().expect("steps").iter().any(builds));
        let mut images = building.map(|(job, description)| (job, &description["container"]["image"]));
        assert!(images.clone().count() > 0, "no job of {name} builds");
        assert!(images.all(|(_, each)| each == image), "a job of {name} has another image than {image}");
    }
    let minor = |version: &str| version.strip_prefix("1.").and_then(|rest| rest.parse::<u32>().ok());
    let has = image.strip_prefix("rust:").and_then(|rest| minor(rest.split('-').next()?)).expect("a version");
    assert!(Some(has) >= minor(env!("CARGO_PKG_RUST_VERSION")), "{image}");
}
