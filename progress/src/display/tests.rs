use std::sync::{Arc, Mutex};

use expect_test::{Expect, expect};

use super::*;
use crate::status::{Log, ProgressGroup, Status, Vertex, Warning};

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn at(tenths: i64) -> Timestamp {
    Timestamp { seconds: 1000 + tenths / 10, nanos: u32::try_from(tenths % 10).unwrap() * 100_000_000 }
}

fn vertex(digest: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
    Vertex {
        digest: digest.into(),
        name: format!("step {digest}"),
        started: started.map(at),
        completed: completed.map(at),
        ..Vertex::default()
    }
}

fn log(digest: &str, tenths: i64, data: &str) -> Log {
    Log { vertex: digest.into(), stream: 1, data: data.into(), timestamp: at(tenths) }
}

fn vertexes(vertexes: Vec<Vertex>) -> SolveStatus {
    SolveStatus { vertexes, ..SolveStatus::default() }
}

fn logs(logs: Vec<Log>) -> SolveStatus {
    SolveStatus { logs, ..SolveStatus::default() }
}

#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "expectations are written in place")]
fn check(mode: Mode, updates: &[(i64, SolveStatus)], want: Expect) {
    let buffer = Buffer::default();
    let mut display = Display::to(Box::new(buffer.clone()), mode);
    for (tenths, status) in updates {
        display.update(status, at(*tenths)).unwrap();
    }
    display.finish(at(updates.last().map_or(0, |u| u.0))).unwrap();
    want.assert_eq(&String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap());
}

#[test]
fn plain_lines_of_a_build() {
    let part = |current, completed: Option<i64>| SolveStatus {
        statuses: vec![Status {
            id: "transferring context:".into(),
            vertex: "a".into(),
            current,
            timestamp: at(1),
            started: Some(at(0)),
            completed: completed.map(at),
            ..Status::default()
        }],
        ..SolveStatus::default()
    };
    check(
        Mode::Plain,
        &[
            (0, vertexes(vec![vertex("a", None, None), vertex("b", None, None)])),
            (0, vertexes(vec![vertex("a", Some(0), None)])),
            (1, part(30, None)),
            (2, part(5490, Some(2))),
            (2, vertexes(vec![vertex("a", Some(0), Some(2))])),
            (3, vertexes(vec![vertex("b", Some(2), None)])),
            (4, logs(vec![log("b", 4, "one\ntw"), log("b", 5, "o\n")])),
            (
                20,
                vertexes(vec![
                    vertex("b", Some(2), Some(20)),
                    Vertex { cached: true, ..vertex("c", Some(20), Some(20)) },
                ]),
            ),
        ],
        expect![[r#"
            #1 step a
            #1 transferring context: 30B 0.1s
            #1 transferring context: 5.49kB 0.2s done
            #1 DONE 0.2s

            #2 step b
            #2 0.200 one
            #2 0.300 two
            #2 DONE 1.8s

            #3 step c
            #3 CACHED
        "#]],
    );
}

#[test]
fn a_failed_step_repeats_its_last_lines() {
    let failed = Vertex {
        error: "process did not complete successfully: exit code: 3".into(),
        ..vertex("a", Some(0), Some(9))
    };
    let canceled = Vertex { error: "rpc: context canceled".into(), ..vertex("b", Some(0), Some(9)) };
    let warning = SolveStatus {
        warnings: vec![Warning {
            vertex: "a".into(),
            level: 1,
            short: b"careful".to_vec(),
            ..Warning::default()
        }],
        ..SolveStatus::default()
    };
    check(
        Mode::Plain,
        &[
            (0, vertexes(vec![vertex("a", Some(0), None), vertex("b", Some(0), None)])),
            (1, warning),
            (
                1,
                logs(vec![
                    log("a", 1, &(1..=12).map(|n| format!("line {n}\n")).collect::<String>()),
                    log("a", 2, "no end"),
                ]),
            ),
            (9, vertexes(vec![failed, canceled])),
        ],
        expect![[r#"
            #1 step a
            #1 WARN: careful
            #1 0.100 line 1
            #1 0.100 line 2
            #1 0.100 line 3
            #1 0.100 line 4
            #1 0.100 line 5
            #1 0.100 line 6
            #1 0.100 line 7
            #1 0.100 line 8
            #1 0.100 line 9
            #1 0.100 line 10
            #1 0.100 line 11
            #1 0.100 line 12
            #1 0.900 no end
            #1 ERROR: process did not complete successfully: exit code: 3

            #2 step b
            #2 CANCELED
            ------
             > step a:
            0.100 line 4
            0.100 line 5
            0.100 line 6
            0.100 line 7
            0.100 line 8
            0.100 line 9
            0.100 line 10
            0.100 line 11
            0.100 line 12
            0.900 no end
            ------
        "#]],
    );
}

#[test]
fn a_group_is_one_step() {
    let member = |digest: &str, completed| Vertex {
        progress_group: Some(ProgressGroup { id: "g".into(), name: "COPY --link".into(), weak: false }),
        ..vertex(digest, Some(0), completed)
    };
    check(
        Mode::Plain,
        &[
            (0, vertexes(vec![member("a", Some(1)), member("b", None)])),
            (3, vertexes(vec![member("b", Some(3))])),
        ],
        expect![[r#"
            #1 COPY --link
            #1 DONE 0.3s
        "#]],
    );
}

#[test]
fn rawjson_is_one_object_a_line() {
    check(
        Mode::RawJson,
        &[
            (0, vertexes(vec![Vertex { name: "a && b > c".into(), ..vertex("d", Some(5), None) }])),
            (1, logs(vec![log("d", 1, "x")])),
        ],
        expect![[r#"
            {"vertexes":[{"digest":"d","name":"a \u0026\u0026 b \u003e c","started":"1970-01-01T00:16:40.5Z"}]}
            {"logs":[{"vertex":"d","stream":1,"data":"eA==","timestamp":"1970-01-01T00:16:40.1Z"}]}
        "#]],
    );
}

#[test]
fn the_live_screen_shows_running_logs_and_ends_with_all_steps() {
    let buffer = Buffer::default();
    let mut display = Display::to(Box::new(buffer.clone()), Mode::Tty);
    display.update(&vertexes(vec![vertex("a", Some(0), None)]), at(1)).unwrap();
    display.update(&logs(vec![log("a", 1, "hi\u{1b}[2J\n")]), at(1)).unwrap();
    display.tick(at(2)).unwrap();
    display.update(&vertexes(vec![vertex("a", Some(0), Some(3))]), at(3)).unwrap();
    display.finish(at(3)).unwrap();
    let screen = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    assert!(screen.contains(" => => # 0.100 hi\u{1b}[K"), "{screen:?}");
    assert!(screen.contains("(1/1) FINISHED"), "{screen:?}");
    assert!(!screen.contains("\u{1b}[2J"), "{screen:?}");
}
