use std::ffi::OsString;

use kiln_frontend::FrontendRequest;

const OPTION: &str = "BUILDKIT_FRONTEND_OPT_";

/// The request that the environment holds. What is no text is no option.
pub(crate) fn request(vars: impl Iterator<Item = (OsString, OsString)>) -> FrontendRequest {
    let mut request = FrontendRequest::default();
    for (name, value) in vars {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        match name {
            "BUILDKIT_SESSION_ID" => value.clone_into(&mut request.session_id),
            "BUILDKIT_EXPORTEDPRODUCT" => value.clone_into(&mut request.product),
            name if name.starts_with(OPTION) => {
                let (key, value) = value.split_once('=').unwrap_or((value, ""));
                request.opts.insert(key.to_owned(), value.to_owned());
            }
            _ => {}
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_from_the_environment() {
        let vars = [
            ("BUILDKIT_FRONTEND_OPT_0", "filename=D"),
            ("BUILDKIT_FRONTEND_OPT_12", "build-arg:A=b=c\nd"),
            ("BUILDKIT_FRONTEND_OPT_x", "no-cache"),
            ("BUILDKIT_SESSION_ID", "s"),
            ("PATH", "/bin"),
        ];
        let request = request(vars.into_iter().map(|(k, v)| (k.into(), v.into())));
        let opts: Vec<(&str, &str)> = request.opts.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(opts, [("build-arg:A", "b=c\nd"), ("filename", "D"), ("no-cache", "")]);
        assert_eq!(request.session_id, "s");
    }
}
