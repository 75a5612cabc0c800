//! The threads that compress, shared by everything that is compressed at one time.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of compression threads. Clones share them; they end when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct CodecPool {
    jobs: SyncSender<Job>,
    threads: usize,
}

impl CodecPool {
    /// Starts `threads` threads, at least one.
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        // Few jobs wait beyond those in work: each holds a block of input, and a full queue makes writers wait.
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        let mut started = 0;
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name(format!("compress-{number}"));
            match thread.spawn(move || work(&queue)) {
                Ok(_) => started += 1,
                Err(error) => tracing::warn!(%error, "cannot start compression thread"),
            }
        }
        Self { jobs, threads: started }
    }

    /// Starts as many threads as there are processors.
    pub fn per_processor() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.threads.max(1)
    }

    /// Runs `task` on one of the threads, or here when there are none.
    pub(super) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (sender, receiver) = sync_channel(1);
        let job: Job = Box::new(move || {
            // A receiver that is gone means that the stream was abandoned.
            let _ = sender.send(task());
        });
        if self.threads == 0 {
            job();
        } else if let Err(refused) = self.jobs.send(job) {
            (refused.0)();
        }
        receiver
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
