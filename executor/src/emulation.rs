//! Programs for other architectures: what the kernel hands to an emulator by itself, and emulators to put in front.

use std::path::{Path, PathBuf};

/// Where the kernel tells what it hands to interpreters.
pub const BINFMT_DIR: &str = "/proc/sys/fs/binfmt_misc";
/// Where an emulator is shown to a step.
pub const EMULATOR: &str = "/dev/.buildkit_qemu_emulator";
/// How emulators are called that run, by themselves, what their program starts.
const PREFIX: &str = "buildkit-qemu-";
/// More registrations than any machine has.
const MAX_ENTRIES: usize = 1024;
const HEADER: usize = 64;

/// An architecture, as Go and as emulators call it, and how its programs begin.
struct Architecture {
    name: &'static str,
    emulator: &'static str,
    bits: Bits,
    order: Order,
    machine: u16,
}

#[derive(Clone, Copy)]
enum Bits {
    Of32 = 1,
    Of64 = 2,
}

#[derive(Clone, Copy)]
enum Order {
    Little = 1,
    Big = 2,
}

/// In the order in which a worker names them.
const ARCHITECTURES: [Architecture; 11] = [
    Architecture::new("arm64", "aarch64", Bits::Of64, Order::Little, 183),
    Architecture::new("riscv64", "riscv64", Bits::Of64, Order::Little, 243),
    Architecture::new("ppc64", "ppc64", Bits::Of64, Order::Big, 21),
    Architecture::new("ppc64le", "ppc64le", Bits::Of64, Order::Little, 21),
    Architecture::new("s390x", "s390x", Bits::Of64, Order::Big, 22),
    Architecture::new("386", "i386", Bits::Of32, Order::Little, 3),
    Architecture::new("mips64le", "mips64le", Bits::Of64, Order::Little, 8),
    Architecture::new("mips64", "mips64", Bits::Of64, Order::Big, 8),
    Architecture::new("loong64", "loong64", Bits::Of64, Order::Little, 258),
    Architecture::new("arm", "arm", Bits::Of32, Order::Little, 40),
    Architecture::new("amd64", "x86_64", Bits::Of64, Order::Little, 62),
];

impl Architecture {
    const fn new(name: &'static str, emulator: &'static str, bits: Bits, order: Order, machine: u16) -> Self {
        Self { name, emulator, bits, order, machine }
    }

    /// The first bytes of an executable.
    fn header(&self) -> [u8; HEADER] {
        const EXECUTABLE: u16 = 2;
        let mut header = [0; HEADER];
        header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', self.bits as u8, self.order as u8, 1]);
        for (place, number) in [(16, EXECUTABLE), (18, self.machine)] {
            let bytes = match self.order {
                Order::Little => number.to_le_bytes(),
                Order::Big => number.to_be_bytes(),
            };
            header[place..place + 2].copy_from_slice(&bytes);
        }
        header
    }
}

/// All that are known, in the order in which a worker names them.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|known| known.name)
}

/// The architectures whose programs the kernel hands to an interpreter, as read from `dir` (usually [`BINFMT_DIR`]). Only
/// interpreters that the kernel holds open count: there are no others inside a step. Blocks.
pub fn handed_on(dir: &Path) -> Vec<&'static str> {
    if std::fs::read_to_string(dir.join("status")).is_ok_and(|status| status.trim() == "disabled") {
        return Vec::new();
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_ENTRIES);
    let texts: Vec<String> = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect();
    let formats: Vec<Format> = texts.iter().filter_map(|text| Format::parse(text)).collect();
    let known =
        ARCHITECTURES.iter().filter(|known| formats.iter().any(|format| format.takes(&known.header())));
    known.map(|known| known.name).collect()
}

/// An emulator for an architecture in the daemon's `PATH`. Blocks.
pub fn emulator(architecture: &str) -> Option<PathBuf> {
    let program = emulator_name(architecture)?;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(&program))
        .find(|path| path.is_file())
}

/// What the emulator for an architecture is called.
pub fn emulator_name(architecture: &str) -> Option<String> {
    let known = ARCHITECTURES.iter().find(|known| known.name == architecture)?;
    Some(format!("{PREFIX}{}", known.emulator))
}

/// What a registration is about.
#[derive(Debug, PartialEq)]
struct Format {
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Format {
    /// `None` for one that is switched off, goes by names of files, or has an interpreter that steps cannot reach.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != "enabled" {
            return None;
        }
        let (mut held, mut offset, mut magic, mut mask) = (false, 0, None, None);
        for line in lines {
            match line.split_once(' ')? {
                ("flags:", flags) => held = flags.contains('F'),
                ("offset", number) => offset = number.parse().ok()?,
                ("magic", hex) => magic = Some(bytes(hex)?),
                ("mask", hex) => mask = Some(bytes(hex)?),
                _ => {}
            }
        }
        let magic = magic.filter(|_| held)?;
        let mask = mask.unwrap_or_else(|| vec![0xff; magic.len()]);
        (mask.len() == magic.len()).then_some(Self { offset, magic, mask })
    }

    fn takes(&self, header: &[u8; HEADER]) -> bool {
        let Some(place) = header.get(self.offset..).and_then(|rest| rest.get(..self.magic.len())) else {
            return false;
        };
        place.iter().zip(&self.magic).zip(&self.mask).all(|((byte, magic), mask)| (byte ^ magic) & mask == 0)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let hex = hex.trim();
    if !hex.is_ascii() || hex.len() > 2 * HEADER || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len() / 2).map(|place| u8::from_str_radix(hex.get(2 * place..2 * place + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AARCH64: &str = "magic 7f454c460201010000000000000000000200b700\n\
                           mask ffffffffffffff00fffffffffffffffffeffffff\n";
    const S390X: &str = "magic 7f454c4602020100000000000000000000020016\n\
                         mask ffffffffffffff00fffffffffffffffffffeffff\n";

    #[track_caller]
    fn check(entries: &[(&str, &str)], want: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in entries {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(handed_on(dir.path()), want, "{entries:?}");
    }

    #[test]
    fn registrations_that_steps_can_use_count() {
        let entry = |state: &str, flags: &str, rest: &str| {
            format!("{state}\ninterpreter /usr/libexec/qemu\nflags: {flags}\noffset 0\n{rest}")
        };
        let [arm, s390x] = [AARCH64, S390X].map(|rest| entry("enabled", "POCF", rest));
        check(
            &[("status", "enabled\n"), ("qemu-aarch64", &arm), ("qemu-s390x", &s390x)],
            &["arm64", "s390x"],
        );
        check(&[("status", "disabled\n"), ("qemu-aarch64", &arm)], &[]);
        check(&[("off", &entry("disabled", "F", AARCH64)), ("outside", &entry("enabled", "OC", S390X))], &[]);
        let by_name = "enabled\ninterpreter /usr/bin/wine\nflags: F\nextension .exe\n";
        check(&[("wine", by_name), ("odd", "enabled\nflags: F\nmagic zz\n"), ("empty", "")], &[]);
        check(&[], &[]);
        assert_eq!(handed_on(Path::new("/nonexistent")), [""; 0]);
    }

    #[test]
    fn emulators_have_names() {
        assert_eq!(emulator_name("arm64").as_deref(), Some("buildkit-qemu-aarch64"));
        assert_eq!(emulator_name("386").as_deref(), Some("buildkit-qemu-i386"));
        assert_eq!(emulator_name("../x"), None);
    }
}
