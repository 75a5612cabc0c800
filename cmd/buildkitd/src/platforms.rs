//! What the worker can run.

use std::path::Path;

use anyhow::{Context, Result};
use kiln_executor::emulation;
use kiln_llb::pb;

/// The platforms that are configured, or those of this machine, its own first. Blocks.
pub(crate) fn platforms(configured: &[String]) -> Result<Vec<pb::Platform>> {
    let host = kiln_llb::platform::host();
    let found = found(&host, &emulation::handed_on(Path::new(emulation::BINFMT_DIR)), variant());
    if configured.is_empty() {
        return Ok(found);
    }
    let asked = configured.iter().map(|text| {
        let platform = parse(text, &host).with_context(|| format!("invalid platform `{text}`"))?;
        if !found.contains(&platform) {
            tracing::warn!(platform = text, "steps of this platform may not run here: there is no emulator");
        }
        Ok(platform)
    });
    asked.collect()
}

/// The host's, the levels of its processor, and what the kernel hands to emulators.
fn found(host: &pb::Platform, handed_on: &[&str], level: u8) -> Vec<pb::Platform> {
    let linux = |architecture: &str, variant: &str| pb::Platform {
        os: host.os.clone(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..pb::Platform::default()
    };
    let is_amd64 = host.architecture == "amd64";
    let mut all = vec![host.clone()];
    if is_amd64 {
        all.extend((2..=level).map(|level| linux("amd64", &format!("v{level}"))));
    }
    let others = emulation::architectures().filter(|name| *name != host.architecture);
    // A processor of the one kind runs programs of the other.
    for name in others.filter(|name| handed_on.contains(name) || (is_amd64 && *name == "386")) {
        match name {
            "arm" => all.extend([linux("arm", "v7"), linux("arm", "v6")]),
            name => all.push(linux(name, "")),
        }
    }
    all
}

/// The level of an x86-64 processor, from 1 to 4.
#[cfg(target_arch = "x86_64")]
fn variant() -> u8 {
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    let second = has!("cmpxchg16b" "popcnt" "sse3" "ssse3" "sse4.1" "sse4.2");
    let third = second && has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe");
    let fourth = third && has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl");
    1 + u8::from(second) + u8::from(third) + u8::from(fourth)
}

#[cfg(not(target_arch = "x86_64"))]
fn variant() -> u8 {
    1
}

/// `OS/ARCH[/VARIANT]`, or an architecture alone.
fn parse(text: &str, host: &pb::Platform) -> Option<pb::Platform> {
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        [architecture] => (host.os.as_str(), *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => return None,
    };
    if os.is_empty() || architecture.is_empty() {
        return None;
    }
    let wanted = pb::Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.to_owned(),
        ..pb::Platform::default()
    };
    Some(kiln_llb::platform::normalize(&wanted, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(architecture: &str, handed_on: &[&str], level: u8, want: &str) {
        let host = parse(&format!("linux/{architecture}"), &pb::Platform::default()).unwrap();
        let names: Vec<String> = found(&host, handed_on, level)
            .iter()
            .map(|p| format!("{}/{}/{}", p.os, p.architecture, p.variant).trim_end_matches('/').to_owned())
            .collect();
        assert_eq!(names.join(" "), want);
    }

    #[test]
    fn the_hosts_own_comes_first() {
        check("amd64", &[], 1, "linux/amd64 linux/386");
        check(
            "amd64",
            &["arm", "s390x", "arm64"],
            3,
            "linux/amd64 linux/amd64/v2 linux/amd64/v3 linux/arm64 linux/s390x linux/386 linux/arm/v7 linux/arm/v6",
        );
        check("arm64", &["amd64", "arm64"], 1, "linux/arm64 linux/amd64");
    }
}
