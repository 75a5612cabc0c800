//! Numbers of system calls, by architecture. The tables are those of the `syscalls` crate.

use std::collections::BTreeMap;

/// The calls of one architecture.
pub(super) struct Table {
    /// How the kernel names the architecture to a filter (`AUDIT_ARCH_…`).
    pub(super) audit: u32,
    /// Calls from this number on belong to another convention.
    pub(super) skip_above: Option<u32>,
    numbers: BTreeMap<&'static str, u32>,
}

impl Table {
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

const SIXTY_FOUR: u32 = 0x8000_0000;
const LITTLE: u32 = 0x4000_0000;
/// Calls of the x32 convention have this bit.
const X32_BIT: u32 = 0x4000_0000;

macro_rules! numbers {
    ($arch:ident) => {
        syscalls::$arch::Sysno::iter()
            .filter_map(|call| Some((call.name(), u32::try_from(call.id()).ok()?)))
            .collect()
    };
}

/// The calls of the architecture that the OCI specification calls `name`.
pub(super) fn table(name: &str) -> Option<Table> {
    let (audit, skip_above, numbers) = match name {
        "SCMP_ARCH_X86_64" => (62 | SIXTY_FOUR | LITTLE, Some(X32_BIT), numbers!(x86_64)),
        "SCMP_ARCH_X86" => (3 | LITTLE, None, numbers!(x86)),
        "SCMP_ARCH_AARCH64" => (183 | SIXTY_FOUR | LITTLE, None, numbers!(aarch64)),
        "SCMP_ARCH_ARM" => (40 | LITTLE, None, numbers!(arm)),
        "SCMP_ARCH_RISCV64" => (243 | SIXTY_FOUR | LITTLE, None, numbers!(riscv64)),
        "SCMP_ARCH_PPC64LE" => (21 | SIXTY_FOUR | LITTLE, None, numbers!(powerpc64)),
        "SCMP_ARCH_S390X" => (22 | SIXTY_FOUR, None, numbers!(s390x)),
        "SCMP_ARCH_LOONGARCH64" => (258 | SIXTY_FOUR | LITTLE, None, numbers!(loongarch64)),
        _ => return None,
    };
    Some(Table { audit, skip_above, numbers })
}
