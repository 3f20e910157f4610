//! The medians, as a table, as JSON and as a chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::peer::Kind;

/// Measure, peer: median.
type Medians = BTreeMap<&'static str, BTreeMap<Kind, f64>>;

/// By case.
#[derive(Default)]
pub struct Results(Vec<(String, Medians)>);

impl Results {
    pub fn add(&mut self, case: &str, figures: BTreeMap<(&'static str, Kind), Vec<f64>>) {
        let mut medians = Medians::new();
        for ((what, kind), mut rounds) in figures {
            rounds.sort_by(f64::total_cmp);
            medians.entry(what).or_default().insert(kind, rounds[rounds.len() / 2]);
        }
        self.0.push((case.to_owned(), medians));
    }

    /// Each figure beside egret's share of it.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for (case, measures) in &self.0 {
            for (what, peers) in measures {
                let ours = peers.get(&Kind::Egret).copied().unwrap_or(f64::NAN);
                let _ = write!(out, "{case}: {what}:");
                for (kind, figure) in peers {
                    let _ = write!(out, "  {} {figure:.1}", kind.name());
                    if *kind != Kind::Egret {
                        let _ = write!(out, " ({:.2}x)", ours / figure);
                    }
                }
                out.push('\n');
            }
        }
        out
    }

    /// Where it was measured: processor, cores, kernel.
    pub fn machine() -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
        let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
        format!(
            "{}, {cores} cores, Linux {}",
            model.trim_start_matches([' ', '\t', ':']),
            read("/proc/sys/kernel/osrelease").trim()
        )
    }

    /// Writes `benches/results/peers.json` and `peers.svg`.
    pub fn write(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        std::fs::create_dir_all(&folder).unwrap();
        let mut json: Map<String, Value> = self
            .0
            .iter()
            .map(|(case, measures)| {
                let of_measure = |peers: &BTreeMap<Kind, f64>| {
                    peers.iter().map(|(kind, figure)| (kind.name().to_owned(), json!(figure))).collect::<Map<_, _>>()
                };
                let measures = measures.iter().map(|(what, peers)| ((*what).to_owned(), of_measure(peers).into()));
                (case.clone(), Value::Object(measures.collect()))
            })
            .collect();
        json.insert("machine".to_owned(), Self::machine().into());
        std::fs::write(folder.join("peers.json"), format!("{:#}\n", Value::Object(json))).unwrap();
        std::fs::write(folder.join("peers.svg"), self.chart()).unwrap();
    }

    /// A group of bars for each measure, as shares of the largest.
    fn chart(&self) -> String {
        const ROW: usize = 18;
        let mut bars = String::new();
        let _ = writeln!(bars, "<text x=\"10\" y=\"20\">{}; shorter is better</text>", Self::machine());
        let mut y = 50;
        for (case, measures) in &self.0 {
            for (what, peers) in measures {
                let _ = writeln!(bars, "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{what} ({case})</text>");
                y += ROW;
                let most = peers.values().copied().fold(f64::MIN_POSITIVE, f64::max);
                for (kind, figure) in peers {
                    let width = (figure.max(0.0) / most * 400.0).max(1.0);
                    let colour = if *kind == Kind::Egret { "#0a7" } else { "#999" };
                    let _ = writeln!(
                        bars,
                        "<text x=\"10\" y=\"{y}\">{}</text><rect x=\"110\" y=\"{}\" width=\"{width:.0}\" height=\"12\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"{y}\">{figure:.1}</text>",
                        kind.name(),
                        y - 10,
                        width + 118.0
                    );
                    y += ROW;
                }
                y += ROW;
            }
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"{y}\" font-family=\"sans-serif\" font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{bars}</svg>\n"
        )
    }
}
