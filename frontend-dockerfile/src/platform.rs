use kiln_frontend::pb;

use crate::text::quote;

/// A platform as the Dockerfile language has it: as written, or normalised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) variant: String,
    pub(crate) os_version: String,
    pub(crate) os_features: Vec<String>,
}

const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const ARCHITECTURES: [&str; 26] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
    "armv7",
    "armv6",
];

impl Platform {
    /// The platform of this machine.
    pub(crate) fn host() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), arch: arch.to_owned(), ..Self::default() }.normalized()
    }

    /// Reads `os[(version+feature…)][/arch[/variant]]` or a single known word.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let quoted = quote(text);
        if text.contains('*') {
            return Err(format!("{quoted}: wildcards not yet supported: invalid argument"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        let mut platform = parse_os(parts[0]).ok_or_else(|| {
            format!(
                "{} is an invalid OS component of {quoted}: OSAndVersion specifier component must match {}: invalid argument",
                quote(parts[0]),
                quote("^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.%-]*)((?:\\+[A-Za-z0-9_.%-]+)*)\\))?$")
            )
        })?;
        for part in &parts[1..] {
            if !word(part) {
                return Err(format!(
                    "{} is an invalid component of {quoted}: platform specifier component must match {}: invalid argument",
                    quote(part),
                    quote("^[A-Za-z0-9_.-]+$")
                ));
            }
        }
        match *parts.as_slice() {
            [_] if SYSTEMS.contains(&platform.os.as_str()) => {
                platform.arch = Self::host().arch;
            }
            [only] => {
                (platform.arch, platform.variant) = normal_arch(only, "");
                if platform.arch == "arm" && platform.variant == "v7" {
                    platform.variant.clear();
                }
                if !ARCHITECTURES.contains(&platform.arch.as_str()) {
                    return Err(format!(
                        "{quoted}: unknown operating system or architecture: invalid argument"
                    ));
                }
                platform.os = "linux".to_owned();
            }
            [_, arch] => {
                (platform.arch, platform.variant) = normal_arch(arch, "");
                if platform.arch == "arm" && platform.variant == "v7" {
                    platform.variant.clear();
                }
            }
            [_, arch, variant] => {
                (platform.arch, platform.variant) = normal_arch(arch, variant);
                if platform.arch == "arm64" && platform.variant.is_empty() {
                    platform.variant = "v8".to_owned();
                }
            }
            _ => return Err(format!("{quoted}: cannot parse platform specifier: invalid argument")),
        }
        Ok(platform)
    }

    pub(crate) fn normalized(&self) -> Self {
        let mut out = self.clone();
        out.os = normal_os(&self.os);
        (out.arch, out.variant) = normal_arch(&self.arch, &self.variant);
        out
    }

    /// `os[(version+features)]/arch[/variant]`.
    pub(crate) fn format(&self) -> String {
        if self.os.is_empty() {
            return "unknown".to_owned();
        }
        let mut text = self.os.clone();
        if !self.os_version.is_empty() || !self.os_features.is_empty() {
            let features: String = self.os_features.iter().map(|feature| format!("+{feature}")).collect();
            text.push_str(&format!("({}{features})", self.os_version));
        }
        self.join_arch(text)
    }

    /// The same without version and features of the system.
    pub(crate) fn format_short(&self) -> String {
        if self.os.is_empty() {
            return "unknown".to_owned();
        }
        self.join_arch(self.os.clone())
    }

    fn join_arch(&self, mut text: String) -> String {
        for part in [&self.arch, &self.variant] {
            if !part.is_empty() {
                text.push('/');
                text.push_str(part);
            }
        }
        text
    }

    pub(crate) fn to_pb(&self) -> pb::Platform {
        pb::Platform {
            architecture: self.arch.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    pub(crate) fn from_pb(platform: &pb::Platform) -> Self {
        Self {
            os: platform.os.clone(),
            arch: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
        }
    }

    pub(crate) fn is_windows(&self) -> bool {
        self.os == "windows"
    }
}

fn parse_os(text: &str) -> Option<Platform> {
    let (os, rest) = match text.split_once('(') {
        Some((os, rest)) => (os, Some(rest.strip_suffix(')')?)),
        None => (text, None),
    };
    let valid =
        |part: &str, extra: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c));
    if os.is_empty() || !valid(os, "_-") {
        return None;
    }
    let mut platform = Platform { os: normal_os(os), ..Platform::default() };
    if let Some(rest) = rest {
        let mut parts = rest.split('+');
        platform.os_version = parts.next().unwrap_or_default().to_owned();
        platform.os_features = parts.map(str::to_owned).collect();
        let all = std::iter::once(&platform.os_version).chain(&platform.os_features);
        if !all.into_iter().all(|part| valid(part, "_.%-"))
            || platform.os_features.iter().any(String::is_empty)
        {
            return None;
        }
        platform.os_features.sort();
    }
    Some(platform)
}

fn normal_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "" => "linux".to_owned(),
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normal_arch(arch: &str, variant: &str) -> (String, String) {
    let (arch, variant) = (arch.to_lowercase(), variant.to_lowercase());
    let (arch, variant) = match arch.as_str() {
        "i386" => ("386", ""),
        "x86_64" | "x86-64" | "amd64" => ("amd64", if variant == "v1" { "" } else { variant.as_str() }),
        "aarch64" | "arm64" => (
            "arm64",
            match variant.as_str() {
                "8" | "v8" | "v8.0" => "",
                "9" | "9.0" | "v9.0" => "v9",
                other => other,
            },
        ),
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "arm" => (
            "arm",
            match variant.as_str() {
                "" | "7" => "v7",
                "5" => "v5",
                "6" => "v6",
                "8" => "v8",
                other => other,
            },
        ),
        other => (other, variant.as_str()),
    };
    (arch.to_owned(), variant.to_owned())
}
