//! Builds a graph of two steps twice: the second time nothing runs.

use std::sync::Arc;

use kiln_solver::testing::{MemoryKeys, Script, Value};
use kiln_solver::{Edge, Graph, OutputIndex, Solver, SolverOptions, VertexIndex};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let solver = Solver::new(Arc::new(MemoryKeys::new()), SolverOptions::default());
    let runs = Arc::default();
    for id in ["first", "second"] {
        let image = Script::new("image", 0).vertex("image", &[], &runs);
        let run = Script::new("run", 1).vertex("run", &[(0, 0)], &runs);
        let job = solver.job(id, Arc::new(()))?;
        let top = Edge { vertex: VertexIndex(1), output: OutputIndex(0) };
        let results = job.build(Graph::new(vec![image, run])?, vec![top]).await?;
        #[expect(clippy::print_stdout, reason = "an example shows what it does")]
        for result in &results {
            println!("{id}: {} by {:?}", Value::text(result.result.as_ref()), result.outcome);
        }
        job.discard().await;
    }
    solver.close().await;
    Ok(())
}
