//! What a process costs while something is done: the time its threads spend on a CPU, in their own code and in the
//! kernel for it.

use std::fs;

/// Seconds, to the nanosecond: the first field of each thread's schedstat (proc(5)).
pub fn cpu_of(pid: u32, done: impl FnOnce()) -> f64 {
    let on_cpu = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let of_task = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0)
        };
        tasks.filter_map(Result::ok).map(of_task).sum::<f64>() / 1e9
    };
    let before = on_cpu();
    done();
    on_cpu() - before
}
