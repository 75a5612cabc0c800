//! Media types of image documents and layers.

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, uncompressed; `+gzip` and `+zstd` are appended.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer with gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer with zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// OCI layer that must not be pushed, uncompressed; `+gzip` and `+zstd` are appended.
pub const OCI_NONDIST_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// OCI empty object.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, uncompressed; `.gzip` and `.zstd` are appended.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer with zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker layer that must not be pushed, uncompressed; `.gzip` and `.zstd` are appended.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// In-toto statement in an attestation manifest.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Whether a media type names an index of manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether a media type names a manifest of one image.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether a media type names a config of an image.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether a media type names a layer tar of any compression.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with(OCI_LAYER)
        || media_type.starts_with(DOCKER_LAYER)
        || is_non_distributable(media_type)
}

/// Whether a media type names a layer that stays where its URLs point to and is not pushed.
pub fn is_non_distributable(media_type: &str) -> bool {
    media_type.starts_with(OCI_NONDIST_LAYER) || media_type.starts_with(DOCKER_FOREIGN_LAYER)
}

/// Returns the OCI form of a layer's media type; any other stays as it is.
pub fn to_oci_layer(media_type: &str) -> String {
    convert(media_type, [(DOCKER_LAYER, OCI_LAYER), (DOCKER_FOREIGN_LAYER, OCI_NONDIST_LAYER)], ".", "+")
}

/// Returns the Docker form of a layer's media type; any other stays as it is.
pub fn to_docker_layer(media_type: &str) -> String {
    convert(media_type, [(OCI_LAYER, DOCKER_LAYER), (OCI_NONDIST_LAYER, DOCKER_FOREIGN_LAYER)], "+", ".")
}

/// Returns the distributable form of a layer's media type; any other stays as it is.
pub fn to_distributable(media_type: &str) -> String {
    for (from, to) in [(OCI_NONDIST_LAYER, OCI_LAYER), (DOCKER_FOREIGN_LAYER, DOCKER_LAYER)] {
        if let Some(rest) = media_type.strip_prefix(from) {
            return format!("{to}{rest}");
        }
    }
    media_type.to_owned()
}

fn convert(media_type: &str, bases: [(&str, &str); 2], old: &str, new: &str) -> String {
    for (from, to) in bases {
        if let Some(rest) = media_type.strip_prefix(from) {
            return match rest.strip_prefix(old) {
                Some(suffix) => format!("{to}{new}{suffix}"),
                None => format!("{to}{rest}"),
            };
        }
    }
    media_type.to_owned()
}
