//! Which of an index's manifests runs on a platform.
//!
//! A platform also runs what older variants of its processor run, best first, as containerd/platforms has it.

use kiln_content::{Descriptor, Platform};

/// Returns the index of the manifest that suits `wanted` best. Manifests that do not say what they are for
/// come after all that do; attestations (`unknown/unknown`) never suit.
#[must_use]
pub fn best_match(wanted: &Platform, manifests: &[Descriptor]) -> Option<usize> {
    let accepted = accepted(wanted);
    manifests
        .iter()
        .enumerate()
        .filter_map(|(at, manifest)| match &manifest.platform {
            Some(platform) => rank(&accepted, platform).map(|rank| (rank, at)),
            None => Some((accepted.len(), at)),
        })
        .min()
        .map(|(_, at)| at)
}

/// Tells whether an image for `platform` runs where `wanted` does.
#[must_use]
pub fn matches(wanted: &Platform, platform: &Platform) -> bool {
    rank(&accepted(wanted), platform).is_some()
}

fn rank(accepted: &[Platform], platform: &Platform) -> Option<usize> {
    let platform = normalized(platform);
    accepted.iter().position(|accepted| {
        accepted.os == platform.os
            && accepted.architecture == platform.architecture
            && accepted.variant == platform.variant
            && platform.os_features.iter().all(|feature| accepted.os_features.contains(feature))
    })
}

/// Returns the platforms whose images run on `wanted`, the best first.
fn accepted(wanted: &Platform) -> Vec<Platform> {
    let wanted = normalized(wanted);
    let variant = |architecture: &str, variant: String| {
        let architecture = architecture.to_owned();
        normalized(&Platform { architecture, variant, ..wanted.clone() })
    };
    match wanted.architecture.as_str() {
        "amd64" => {
            let version = version(&wanted.variant).unwrap_or(1).min(9);
            let older = (1..version).rev().map(|older| variant("amd64", format!("v{older}")));
            std::iter::once(wanted.clone()).chain(older).chain([variant("386", String::new())]).collect()
        }
        "arm" => arm(&wanted, &wanted.variant),
        "arm64" => {
            let Some((major, minor)) = arm64_version(&wanted.variant) else { return Vec::new() };
            let name = |major: u32, minor: u32| match minor {
                0 => format!("v{major}"),
                minor => format!("v{major}.{minor}"),
            };
            let mut all = Vec::new();
            if major == 9 {
                all.extend((0..=minor).rev().map(|minor| variant("arm64", name(9, minor))));
            }
            let of_v8 = if major == 9 { (minor + 5).min(9) } else { minor };
            all.extend((0..=of_v8).rev().map(|minor| variant("arm64", name(8, minor))));
            all.extend(arm(&wanted, "v8"));
            all
        }
        _ => vec![wanted.clone()],
    }
}

fn arm(wanted: &Platform, newest: &str) -> Vec<Platform> {
    let of = |variant: String| Platform { architecture: "arm".to_owned(), variant, ..wanted.clone() };
    let older = match version(newest) {
        Some(version) if version > 5 => 5..version.min(9),
        _ => 0..0,
    };
    std::iter::once(of(newest.to_owned())).chain(older.rev().map(|older| of(format!("v{older}")))).collect()
}

fn version(variant: &str) -> Option<u32> {
    variant.strip_prefix('v').unwrap_or(variant).parse().ok()
}

/// Reads `v8.3` and such; only versions that exist.
fn arm64_version(variant: &str) -> Option<(u32, u32)> {
    let (major, minor) = match variant.strip_prefix('v').unwrap_or(variant) {
        "" => (8, 0),
        other => match other.split_once('.') {
            Some((major, minor)) => (major.parse().ok()?, minor.parse().ok()?),
            None => (other.parse().ok()?, 0),
        },
    };
    match (major, minor) {
        (8, 0..=9) | (9, 0..=7) => Some((major, minor)),
        _ => None,
    }
}

/// Resolves aliases beyond those that [`Platform::normalized`] knows.
fn normalized(platform: &Platform) -> Platform {
    let mut platform = platform.normalized();
    match (platform.architecture.as_str(), platform.variant.as_str()) {
        ("arm64", "9" | "9.0" | "v9.0") => platform.variant = "v9".to_owned(),
        ("386", _) => platform.variant.clear(),
        _ => {}
    }
    platform
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/');
        let mut next = || parts.next().unwrap_or_default();
        Platform::new(next(), next(), next())
    }

    /// Chooses among `offered` and shows the choice.
    #[track_caller]
    fn check(wanted: &str, offered: &[&str], want: &str) {
        let manifests: Vec<Descriptor> = offered
            .iter()
            .map(|offered| {
                let mut manifest = Descriptor::of("", b"");
                manifest.platform = (*offered != "-").then(|| platform(offered));
                manifest
            })
            .collect();
        let got = best_match(&platform(wanted), &manifests).map_or("none", |at| offered[at]);
        assert_eq!(got, want, "{wanted} of {offered:?}");
    }

    #[test]
    fn the_best_variant_wins() {
        check("linux/amd64", &["linux/arm64", "linux/amd64"], "linux/amd64");
        check("linux/amd64", &["linux/amd64/v2"], "none");
        check("linux/amd64/v3", &["linux/386", "linux/amd64", "linux/amd64/v2"], "linux/amd64/v2");
        check("linux/amd64", &["linux/386"], "linux/386");
        check("linux/amd64", &["linux/x86_64/v1"], "linux/x86_64/v1");
        check("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v6");
        check("linux/arm", &["linux/arm/v7"], "linux/arm/v7");
        check("linux/arm/v5", &["linux/arm/v6"], "none");
        check("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8");
        check("linux/arm64", &["linux/arm/v7"], "linux/arm/v7");
        check(
            "linux/arm64/v8.2",
            &["linux/arm64", "linux/arm64/v8.1", "linux/arm64/v8.3"],
            "linux/arm64/v8.1",
        );
        check("linux/arm64/v9.1", &["linux/arm64/v8.7", "linux/arm64/v8.6"], "linux/arm64/v8.6");
        check("linux/arm64/v9", &["linux/arm64/9.0"], "linux/arm64/9.0");
        check("linux/arm64/v7", &["linux/arm64"], "none");
        check("linux/s390x", &["linux/s390x"], "linux/s390x");
        check("linux/amd64", &["windows/amd64"], "none");
    }

    #[test]
    fn attestations_never_suit_and_the_undeclared_come_last() {
        check("linux/amd64", &["unknown/unknown"], "none");
        check("linux/amd64", &["unknown/unknown", "-"], "-");
        check("linux/amd64", &["-", "linux/386"], "linux/386");
        check("linux/amd64", &["linux/amd64", "linux/amd64"], "linux/amd64");
        check("linux/amd64", &[], "none");
    }

    #[test]
    fn the_system_needs_the_features_that_the_image_asks_for() {
        let mut image = platform("linux/amd64");
        image.os_features = vec!["x".to_owned()];
        assert!(!matches(&platform("linux/amd64"), &image));
        assert!(matches(&image, &image));
        assert!(matches(&image, &platform("linux/amd64")));
    }
}
