use std::collections::BTreeMap;

/// The frontend that serves a request for `name`.
///
/// Dockerfiles ask by `# syntax=` for an image of the Dockerfile frontend. The built-in one speaks the same language, so
/// it serves requests for any tag of that image; one pinned by digest, of another repository, or replaced by a named context
/// is meant as it is.
pub fn builtin<'a>(name: &'a str, opts: &BTreeMap<String, String>) -> &'a str {
    const DOCKERFILE: &str = "dockerfile.v0";
    const IMAGES: [&str; 3] =
        ["docker/dockerfile", "docker.io/docker/dockerfile", "docker/dockerfile-upstream"];
    let replaced = |key: &String| {
        let image = key.strip_prefix("context:");
        image
            .is_some_and(|image| image.starts_with(DOCKERFILE) || IMAGES.iter().any(|i| image.starts_with(i)))
    };
    if name != "gateway.v0" || opts.keys().any(replaced) {
        return name;
    }
    let source = opts.get("source").map(String::as_str).unwrap_or_default();
    let repository = source.rsplit_once(':').map_or(source, |(repository, _)| repository);
    let ours = source == DOCKERFILE || (!source.contains('@') && IMAGES.contains(&repository));
    if ours { DOCKERFILE } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_dockerfile_frontend_serves_gateway_requests_for_it() {
        let served = |attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            builtin("gateway.v0", &attrs).to_owned()
        };
        for source in [
            "dockerfile.v0",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile",
        ] {
            assert_eq!(served(&[("source", source)]), "dockerfile.v0", "{source}");
        }
        for source in ["docker/dockerfile@sha256:aa", "example.com/frontend:1", ""] {
            assert_eq!(served(&[("source", source)]), "gateway.v0", "{source}");
        }
        for (source, context) in [
            ("dockerfile.v0", "context:dockerfile.v0"),
            ("docker/dockerfile:1", "context:docker/dockerfile:1::linux/amd64"),
        ] {
            assert_eq!(served(&[("source", source), (context, "docker-image://x")]), "gateway.v0");
        }
    }
}
