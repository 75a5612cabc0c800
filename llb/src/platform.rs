//! Platforms and their normal form.

use crate::pb::Platform;

/// Returns the platform of this machine, in Go's terms.
pub fn host() -> Platform {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        os => os,
    };
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", ""),
        "arm" => ("arm", "v7"),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
        "powerpc64" => ("ppc64", ""),
        "loongarch64" => ("loong64", ""),
        "mips64" if cfg!(target_endian = "little") => ("mips64le", ""),
        other => (other, ""),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: os.to_owned(),
        variant: variant.to_owned(),
        ..Platform::default()
    }
}

/// Brings a platform into the form that platforms are compared in: case folded, aliases resolved, default
/// variants dropped. An empty OS becomes that of `default`.
///
/// Follows containerd/platforms: database.go.
pub fn normalize(platform: &Platform, default: &Platform) -> Platform {
    let os = match platform.os.to_lowercase().as_str() {
        "" => default.os.clone(),
        "macos" => "darwin".to_owned(),
        os => os.to_owned(),
    };
    let variant = platform.variant.to_lowercase();
    let architecture = platform.architecture.to_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (architecture, variant) => (architecture, variant),
    };
    let mut os_features = platform.os_features.clone();
    os_features.sort();
    os_features.dedup();
    Platform {
        architecture: architecture.to_owned(),
        os,
        variant: variant.to_owned(),
        os_version: platform.os_version.clone(),
        os_features,
    }
}
