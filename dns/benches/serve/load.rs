//! Load by `dnsperf`, and what it costs whom.

use std::net::SocketAddr;
use std::process::Command;

const SECONDS: u32 = 4;
const ROUNDS: usize = 3;
/// Clock ticks of /proc/…/stat.
const TICKS: f64 = 100.0;

/// Whose time and waiting is counted.
pub enum Who {
    /// Threads of this process whose names begin so.
    Threads(&'static str),
    Process(u32),
}

/// Somebody who is asked.
pub struct Target {
    pub label: String,
    pub address: SocketAddr,
    pub who: Who,
    /// A line for each question, as `dnsperf` takes them.
    pub questions: String,
}

#[derive(Clone, Copy)]
struct Measured {
    rate: f64,
    /// Microseconds of CPU a query.
    cost: f64,
    /// Queries each time that it had waited.
    batch: f64,
}

/// Asks one after the other, and all of them again, and prints the medians; the costs in the order of the targets.
pub fn alternate(targets: &[Target]) -> Vec<f64> {
    let mut all = vec![Vec::new(); targets.len()];
    for target in targets {
        // What is found out once is known before it counts.
        target.ask(1);
    }
    for _ in 0..ROUNDS {
        for (target, measured) in targets.iter().zip(&mut all) {
            measured.extend(target.ask(SECONDS));
        }
    }
    println!(
        "                              queries/s   CPU us/query (least, most)   queries/wake-up"
    );
    let mut costs = Vec::new();
    for (target, measured) in targets.iter().zip(&mut all) {
        if measured.is_empty() {
            return Vec::new();
        }
        measured.sort_by(|a: &Measured, b| a.cost.total_cmp(&b.cost));
        let median = measured[measured.len() / 2];
        println!(
            "{:<26}  {:>11.0}   {:>12.3} ({:.3}, {:.3})   {:>12.1}",
            target.label,
            median.rate,
            median.cost,
            measured[0].cost,
            measured[measured.len() - 1].cost,
            median.batch
        );
        costs.push(median.cost);
    }
    costs
}

impl Target {
    fn ask(&self, seconds: u32) -> Option<Measured> {
        let file = std::env::temp_dir().join(format!("heddle-dns-bench-{}", std::process::id()));
        std::fs::write(&file, &self.questions).expect("a temporary file");
        let before = self.who.used();
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &self.address.port().to_string()])
            .args(["-l", &seconds.to_string(), "-c", "8", "-q", "200", "-d"])
            .arg(&file)
            .output();
        let after = self.who.used();
        let _ = std::fs::remove_file(&file);
        let Ok(output) = output else {
            println!("dnsperf is not installed: no load");
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |label| {
            let mut lines = text.lines();
            let rest = lines.find_map(|line| line.trim().strip_prefix(label))?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        };
        let Some(completed) = number("Queries completed:") else {
            println!("dnsperf: {text}");
            return None;
        };
        if let Some(lost) = number("Queries lost:").filter(|lost| *lost > 0.0) {
            println!("{}: {lost} queries lost", self.label);
        }
        Some(Measured {
            rate: completed / f64::from(seconds),
            cost: (after.0 - before.0) * 1e6 / completed,
            batch: completed / (after.1 - before.1).max(1.0),
        })
    }
}

impl Who {
    /// Seconds that they have run, and how often they waited.
    fn used(&self) -> (f64, f64) {
        let (process, prefix) = match self {
            Who::Threads(prefix) => (std::process::id(), *prefix),
            Who::Process(process) => (*process, ""),
        };
        let mut used = (0.0, 0.0);
        let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let (stat, status) = (read("stat"), read("status"));
            let Some((head, rest)) = stat.rsplit_once(')') else {
                continue;
            };
            let name = head.split_once('(').map_or("", |(_, name)| name);
            let index = name.strip_prefix(prefix).unwrap_or("none of them");
            let counts = index == "runtime" || index.parse::<u32>().is_ok();
            if !prefix.is_empty() && !counts {
                continue;
            }
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let ticks = fields[11..13].iter().filter_map(|f| f.parse::<f64>().ok());
            used.0 += ticks.sum::<f64>() / TICKS;
            let waited = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            used.1 += waited
                .and_then(|w| w.trim().parse::<f64>().ok())
                .unwrap_or(0.0);
        }
        used
    }
}
