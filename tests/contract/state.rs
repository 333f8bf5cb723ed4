//! A restart with `--state`, of the program itself.

use std::{process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{
    ask::{Ask, get, post, publish, publish_all, text, topic_path, within},
    metrics::scrape,
    reader::Reader,
    support::{
        client::Transport,
        program::{Folder, Program},
    },
};

/// Reconnects at `cursor`, and asserts that the next frames are exactly these messages, without a gap.
async fn assert_resumes(program: &Program, topics: &str, cursor: &str, ids: &[String]) {
    for transport in Transport::ALL {
        let query = format!("{topics}&after={cursor}");
        let mut reader = Reader::open(&program.server, transport, &query).await;
        assert_eq!(reader.ids(ids.len()).await, ids, "{transport}");
    }
}

#[tokio::test]
async fn with_a_state_file_readers_continue_across_a_restart() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let first = publish_all(&program.server, "a", 1..=500).await;
    let mut reader =
        Reader::open(&program.server, Transport::Sse, &format!("topic=a&after={}", first[0])).await;
    assert_eq!(reader.ids(499).await, first[1..]);
    // Published while no client reads, so that the next process still has to send some of it.
    let later = publish_all(&program.server, "b.c", 1..=50).await;
    let ended = program.terminate().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let program = Program::start(&arguments).await;
    assert_resumes(&program, "topic=a", &first[0], &first[1..]).await;
    let mut live =
        Reader::open(&program.server, Transport::WebSocket, &format!("topic=a&after={}", first[499])).await;
    assert_resumes(&program, "topic=b.*", reader.cursor(), &later).await;
    let next = publish(&program.server, "a", "after the restart").await;
    assert!(next > later[49]);
    assert_eq!(live.ids(1).await, [next.as_str()]);
    let all: Vec<_> = later.iter().chain([&next]).cloned().collect();
    assert_resumes(&program, "topic=**", &first[499], &all).await;

    // A second restart: the process saves again what it has read from the file.
    let ended = program.terminate().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let program = Program::start(&arguments).await;
    assert_resumes(&program, "topic=**", &first[499], &all).await;
}

#[tokio::test]
async fn with_a_state_file_an_idempotency_key_still_counts_after_a_restart() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let with_key = async |program: &Program, payload: &'static str| {
        let request = post(&program.server, &topic_path("a")).header("idempotency-key", "k").body(payload);
        request.answer().await
    };
    let first = with_key(&program, "x").await;
    assert_eq!(first.status, 201, "{first:?}");
    program.terminate().await;
    let program = Program::start(&arguments).await;
    let again = with_key(&program, "x").await;
    assert_eq!((again.status, again.id()), (200, first.id()), "{again:?}");
    with_key(&program, "other").await.problem(422, "key_reused");
}

#[tokio::test]
async fn a_crash_becomes_a_gap_even_with_a_state_file() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let kept = publish(&program.server, "a", "kept").await;
    program.terminate().await;
    let program = Program::start(&arguments).await;
    let lost = publish(&program.server, "a", "lost").await;
    program.kill().await;

    let program = Program::start(&arguments).await;
    for cursor in [&kept, &lost] {
        for transport in Transport::ALL {
            let query = format!("topic=a&after={cursor}");
            let gap = Reader::open(&program.server, transport, &query).await.gap().await;
            assert_eq!(gap["reason"], "restarted", "{transport}: {gap}");
        }
    }
    assert!(publish(&program.server, "a", "new").await > lost);
    let ended = program.terminate().await;
    assert!(ended.log.contains("did not end in order"), "{ended:?}");
}

#[tokio::test]
async fn a_damaged_state_file_is_logged_and_set_aside() {
    let damage: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| *bytes.last_mut().expect("it has bytes") ^= 1,
        |bytes| bytes.clear(),
    ];
    for damage in damage {
        let folder = Folder::new();
        let path = folder.path("state");
        let arguments = ["--state", &path];
        let program = Program::start(&arguments).await;
        let id = publish(&program.server, "a", "x").await;
        program.terminate().await;
        let mut bytes = std::fs::read(&path).expect("a file");
        damage(&mut bytes);
        std::fs::write(&path, &bytes).expect("written");

        let program = Program::start(&arguments).await;
        let gap = Reader::open(&program.server, Transport::Ndjson, &format!("topic=a&after={id}"))
            .await
            .gap()
            .await;
        assert_eq!(gap["reason"], "restarted", "{gap}");
        let stats = get(&program.server, "/stats").answer().await.json();
        assert!(text(&stats["began"]) > id, "{stats}");
        let ended = program.terminate().await;
        assert!(ended.log.contains("damaged and was set aside"), "{ended:?}");
        let names =
            std::fs::read_dir(&folder.0).expect("a folder").map(|entry| entry.expect("an entry").path());
        let aside: Vec<_> = names.filter(|path| path.to_string_lossy().contains(".damaged-")).collect();
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert_eq!(std::fs::read(&aside[0]).expect("a file"), bytes);
    }
}

#[tokio::test]
async fn the_next_process_waits_for_the_last_one_and_logs_it() {
    let folder = Folder::new();
    let path = folder.path("state");
    let first = Program::start(&["--state", &path]).await;
    let mut second = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .env_clear()
        .args(["--listen", "127.0.0.1:0", "--state", &path])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut told = BufReader::new(second.stderr.take().expect("a pipe")).lines();
    let mut until_told =
        async |text| while !told.next_line().await.expect("text").expect("a line").contains(text) {};
    within("the second process to wait", until_told("waiting for it")).await;
    first.terminate().await;
    within("the second process to serve", until_told("\"listening\"")).await;
}

/// Asks again until the answer is as expected.
async fn until_ready(program: &Program, status: u16) {
    let asking = async {
        while get(&program.server, "/health/ready").answer().await.status != status {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("another readiness", asking).await;
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_visible_and_is_tried_again_until_the_grace_has_passed() {
    let folder = Folder::new();
    let path = folder.path("state");
    let arguments = ["--state", &path, "--drain-grace", "60s"];
    let mut program = Program::start(&arguments).await;
    let state_failed = async |program: &Program| {
        let stats = get(&program.server, "/stats").answer().await.json();
        let metric = scrape(&program.server).await["rejoin_state_failed"];
        (stats["state_failed"].as_bool().expect("a boolean"), metric)
    };
    assert_eq!(state_failed(&program).await, (false, 0.0));
    // A folder is in the way of the file that is written.
    let in_the_way = folder.path("state.new");
    std::fs::create_dir(&in_the_way).expect("a folder");
    let failing = async {
        while !state_failed(&program).await.0 {
            publish(&program.server, "a", "goes on").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("a write that fails", failing).await;
    assert_eq!(state_failed(&program).await, (true, 1.0));
    assert_eq!(get(&program.server, "/health/ready").answer().await.status, 200);
    let id = publish(&program.server, "a", "kept").await;
    program.send_sigterm();
    program.until_logged("trying again until the drain grace has passed").await;
    std::fs::remove_dir(&in_the_way).expect("removed");
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.log.contains("the state file cannot be written: publishing goes on"), "{ended:?}");
    assert!(ended.log.contains(&format!("{path:?}")), "{ended:?}");

    let program = Program::start(&arguments).await;
    assert_eq!(state_failed(&program).await, (false, 0.0));
    let next = publish(&program.server, "a", "next").await;
    assert_resumes(&program, "topic=a", &id, &[next]).await;
}

/// Starts a server that takes the file of another one.
async fn start_in_its_place(folder: &Folder, arguments: &[&str]) -> Program {
    let lock = folder.path("state.lock");
    let of_the_other = std::fs::read(&lock).expect("a lock file");
    // If the other server is faster, it makes its lock file again, and the new one waits for it.
    let removing = async {
        loop {
            if std::fs::read(&lock).is_ok_and(|content| content == of_the_other) {
                std::fs::remove_file(&lock).expect("removed");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        biased;
        never = removing => never,
        second = Program::start(arguments) => second,
    }
}

/// Its readers missed what the other server stored, and it stayed ready.
#[tokio::test]
async fn a_server_that_has_stored_nothing_is_not_ready_once_another_one_has_taken_its_state_file() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let id = publish(&program.server, "a", "kept").await;
    program.terminate().await;
    let first = Program::start(&arguments).await;
    let second = start_in_its_place(&folder, &arguments).await;
    until_ready(&first, 503).await;
    assert_eq!(scrape(&first.server).await["rejoin_state_failed"], 1.0);
    let ended = first.terminate().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.log.contains("another server uses the state file"), "{ended:?}");
    let gap = Reader::open(&second.server, Transport::Sse, &format!("topic=a&after={id}")).await.gap().await;
    assert_eq!(gap["reason"], "restarted", "{gap}");
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_at_the_start_ends_it_with_1_and_one_file_is_set_aside() {
    let folder = Folder::new();
    let path = folder.path("state");
    std::fs::write(&path, "rejoin-state").expect("written");
    // A folder is in the way of the file that is written.
    std::fs::create_dir(folder.path("state.new")).expect("a folder");
    for _ in 0..3 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rejoin"));
        command.env_clear().args(["--listen", "127.0.0.1:0", "--state", &path]).kill_on_drop(true);
        let ended = within("the end", command.output()).await.expect("it ran");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("error: --state {path}: ")), "{told}");
    }
    let names = std::fs::read_dir(&folder.0).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    assert_eq!(names.filter(|name| name.contains(".damaged-")).count(), 1);
}

#[tokio::test]
async fn a_server_whose_state_file_another_one_has_taken_is_not_ready_and_stores_nothing() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let first = Program::start(&arguments).await;
    publish(&first.server, "a", "first").await;
    let second = start_in_its_place(&folder, &arguments).await;
    until_ready(&first, 503).await;
    post(&first.server, &topic_path("a")).body("x").answer().await.problem(503, "unavailable");
    let id = publish(&second.server, "a", "second").await;
    let ended = first.terminate().await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(
        ended.log.contains("another server uses the state file: this server stores nothing more"),
        "{ended:?}"
    );
    assert_eq!(second.terminate().await.code, Some(0));
    let program = Program::start(&arguments).await;
    let mut reader = Reader::open(&program.server, Transport::Sse, "topic=a&after=0").await;
    assert_eq!(reader.ids(1).await, [id]);
}

/// How much memory the process took at most, in KiB.
fn most_memory(program: &Program) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid().as_raw_nonzero()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The file was in memory as a whole beside the log, so a server that had just enough memory to run did not
/// start again.
#[tokio::test]
async fn a_start_takes_hardly_more_memory_than_the_run_before() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state"), "--retain-bytes", "64MiB"];
    let program = Program::start(&arguments).await;
    let messages: Vec<_> =
        (0..64).map(|number| json!({"topic": format!("a.{number}"), "data": "x".repeat(16_000)})).collect();
    for _ in 0..40 {
        let answer = post(&program.server, "/publish").json(&messages).answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let running = most_memory(&program);
    assert!(running > 40_000, "{running} KiB");
    program.terminate().await;
    let program = Program::start(&arguments).await;
    assert!(get(&program.server, "/stats").answer().await.json()["bytes"].as_u64() > Some(40_000_000));
    let starting = most_memory(&program);
    assert!(starting < running * 115 / 100, "{starting} KiB after {running} KiB");
}

/// The readers who had the messages of the newer file missed what was published after it was put back.
#[tokio::test]
async fn an_older_state_file_that_is_put_back_becomes_a_gap() {
    let folder = Folder::new();
    let (path, copy) = (folder.path("state"), folder.path("copy"));
    let arguments = ["--state", &path];
    let program = Program::start(&arguments).await;
    let before = publish(&program.server, "a", "one").await;
    program.terminate().await;
    std::fs::copy(&path, &copy).expect("a copy");
    let program = Program::start(&arguments).await;
    let lost = publish(&program.server, "a", "two").await;
    program.terminate().await;
    std::fs::copy(&copy, &path).expect("put back");

    let program = Program::start(&arguments).await;
    assert!(publish(&program.server, "a", "new").await > lost);
    for cursor in [&before, &lost] {
        for transport in Transport::ALL {
            let query = format!("topic=a&after={cursor}");
            let gap = Reader::open(&program.server, transport, &query).await.gap().await;
            assert_eq!(gap["reason"], "restarted", "{transport}: {gap}");
        }
    }
    let ended = program.terminate().await;
    assert!(ended.log.contains("may be an older copy and was set aside"), "{ended:?}");
}
