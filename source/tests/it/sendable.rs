//! Futures of this crate run on any thread.

use kiln_registry::Access;
use kiln_session::Lender;
use kiln_solver::VertexProgress;
use kiln_source::image::{ImageRequest, Images, Layouts, Resolutions};
use kiln_source::local::{LocalRequest, Locals};

fn send<T: Send>(_: &T) {}

#[expect(dead_code, reason = "that it compiles is the test")]
fn futures(
    images: &Images,
    request: &ImageRequest,
    memory: &Resolutions,
    access: Access<'_>,
    layouts: &dyn Layouts,
    progress: &VertexProgress,
) {
    send(&images.resolve(request, memory, access, layouts, progress));
}

#[expect(dead_code, reason = "that it compiles is the test")]
fn local(locals: &Locals, request: &LocalRequest, lender: &Lender, progress: &VertexProgress) {
    send(&locals.snapshot(request, lender, progress));
}
