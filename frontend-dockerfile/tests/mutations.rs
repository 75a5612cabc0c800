//! The recorded Dockerfiles, changed at random: whatever comes of it is an answer or an error, and comes soon.
//!
//! The changes follow from a seed, so that a run can be repeated. `KILN_MUTATIONS` is how often each file is changed, for
//! longer runs; `KILN_SEED` begins elsewhere.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use kiln_frontend_dockerfile::testing::{expand, lower, parse};

/// Times that each file is changed, unless the environment says more.
const TIMES: u64 = 2;
/// How much processor time one file may take.
const SOON: Duration = Duration::from_secs(60);

/// The processor time of this thread, which does not depend on what else the machine does.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Pieces that files are made of, and some that they should not be made of.
const PIECES: [&str; 48] = [
    "FROM ",
    "FROM scratch\n",
    "AS a",
    "RUN ",
    "COPY ",
    "ADD ",
    "ARG ",
    "ENV ",
    "LABEL ",
    "ONBUILD ",
    "HEALTHCHECK ",
    "EXPOSE 1-3/udp",
    "SHELL [\"a\"]",
    "WORKDIR ",
    "USER ",
    "VOLUME ",
    "STOPSIGNAL ",
    "CMD ",
    "ENTRYPOINT ",
    "--mount=type=cache,target=/c",
    "--mount=type=secret,id=a,env=B",
    "--from=a",
    "--chmod=u+x",
    "--parents",
    "--link",
    "--exclude=*",
    "--platform=$BUILDPLATFORM",
    "<<EOF",
    "\nEOF\n",
    "<<-'E'",
    "\\\n",
    "\n",
    "\r\n",
    "\"",
    "'",
    "$",
    "${",
    "}",
    "${A:-",
    "${A//",
    "${A%%",
    "[\"",
    "# ",
    "# escape=`\n",
    "# check=error=true\n",
    "\0",
    "\u{feff}",
    "://x.git#",
];

/// A small generator, so that a seed means the same for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }
}

fn change(file: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(file.len() + 1);
    let end = (at + 1 + random.below(30)).min(file.len());
    match random.below(7) {
        0 if at < file.len() => file[at] ^= 1 << random.below(8),
        1 => drop(file.drain(at..end)),
        2 => {
            let part = file[at..end].to_vec();
            let to = random.below(file.len() + 1);
            file.splice(to..to, part);
        }
        3 => {
            let from = random.below(other.len() + 1);
            let to = (from + random.below(200)).min(other.len());
            file.splice(at..at, other[from..to].iter().copied());
        }
        4 => file.truncate(at),
        _ => {
            let piece = PIECES[random.below(PIECES.len())];
            file.splice(at..at, piece.bytes());
        }
    }
}

fn files() -> Vec<Vec<u8>> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases");
    let mut paths = Vec::new();
    for topic in std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()) {
        let Ok(entries) = std::fs::read_dir(topic) else { continue };
        paths.extend(entries.map(|entry| entry.unwrap().path().join("Dockerfile")));
    }
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn enter(file: &[u8]) {
    // Errors are answers too: what is looked for is a panic, or no end.
    let _outcome = parse(file);
    let _outcome = lower(file, &[("build-arg:A", "x*y")]);
    let _outcome = lower(file, &[("requestid", "frontend.lint"), ("cmdline", "given")]);
    if let Ok(word) = std::str::from_utf8(file) {
        let _outcome = expand(word, &[("A", "x*y"), ("B", "")]);
    }
}

#[test]
fn changed_files_are_answered() {
    let files = files();
    assert!(files.len() > 600, "the recorded cases are there");
    let mut random = Random(number("KILN_SEED", 0x6b69_6c6e));
    for round in 0..number("KILN_MUTATIONS", TIMES) {
        for index in 0..files.len() {
            let mut file = files[index].clone();
            let other = &files[random.below(files.len())];
            for _ in 0..=random.below(6) {
                change(&mut file, other, &mut random);
            }
            let start = processor_time();
            let entered = catch_unwind(AssertUnwindSafe(|| enter(&file)));
            let text = || String::from_utf8_lossy(&file).into_owned();
            assert!(entered.is_ok(), "round {round}: {:?}", text());
            let took = processor_time() - start;
            assert!(took < SOON, "round {round} took {took:?}: {:?}", text());
        }
    }
}
